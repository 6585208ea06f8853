// A server that stops names other addresses, and the client goes there as far as it trusts them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeServer } from "./fake.mjs";
import { Inbox } from "./helpers.mjs";
import * as page from "../dist/index.js";
import * as small from "../dist/json.js";
import { Bothways } from "../dist/node.js";

/** A client of this address, and where it connects to; nobody is at an address that `gone` has. */
function clientOf(t, home, options = {}, gone = [], Class = Bothways) {
  const server = new FakeServer();
  const dialed = new Inbox();
  const dial = (address, events) => {
    dialed.put(address);
    if (!gone.includes(address)) return server.dial(address, events);
    queueMicrotask(() => events.closed("nobody is there"));
    return { buffered: 0, send() {}, close() {} };
  };
  const bw = new Class(home, { dial, backoffBase: 1, backoffMax: 2, heartbeat: 0, ...options });
  t.after(() => bw.close());
  return { bw, server, dialed };
}

/** Where it goes after its server has said this, `times` connections on. */
async function goes(t, home, said, { options, gone, times = 1 } = {}) {
  const { bw, server, dialed } = clientOf(t, home, options, gone);
  await bw.connect();
  (await server.connection(1)).control("Goodbye", { "_bw.code": "shutting_down", "_bw.alt": said });
  await dialed.count(1 + times, "it connects again");
  return dialed.values.slice(1, 1 + times);
}

test("a client goes to hosts at or below its own, over its own network and path", async (t) => {
  const home = "wss://chat.example.org/rpc";
  for (const [said, expected] of [
    ["wss@chat.example.org:8443", "wss://chat.example.org:8443/rpc"],
    ["tcp@n7.chat.example.org:1 wss@n7.chat.example.org:443/else", "wss://n7.chat.example.org:443/rpc"],
    ["wss://n7.chat.example.org", "wss://n7.chat.example.org/rpc"],
    ["ws@n7.chat.example.org:80", home],
    ["wss@evil.example.org:443", home],
    ["wss@evilchat.example.org:443", home],
    ["wss@evil.org\\.chat.example.org:443", home],
    ["wss@evil.org?.chat.example.org:443", home],
    ["wss@evil.org#.chat.example.org", home],
    ["wss@evil.org/.chat.example.org", home],
    ["wss@evil.org:443@n7.chat.example.org", home],
    ["", home],
  ]) assert.deepEqual(await goes(t, home, said), [expected], said);
  assert.deepEqual(await goes(t, "ws@127.0.0.1:80", "ws@127.0.0.1:81"), ["ws://127.0.0.1:81/_rpcx_"]);
  assert.deepEqual(await goes(t, "tcp@[::1]:80", "tcp@[::1]:81", {}), ["tcp@[::1]:81"]);
});

test("an application says where its client goes", async (t) => {
  const home = "wss://chat.example.org/rpc";
  const said = "wss@a.net:1 wss@b.net:2 ws@b.net:3";
  assert.deepEqual(await goes(t, home, said, { options: { others: false } }), [home]);
  const others = (address) => /^wss:\/\/b\.net/.test(address);
  assert.deepEqual(await goes(t, home, said, { options: { others } }), ["wss://b.net:2/rpc"]);
});

test("where nobody is, the client goes on to the next address, and home, and forgets them when it is connected", async (t) => {
  const [home, a, b] = ["ws://h/p", "ws://a.h/p", "ws://b.h/p"];
  const gone = [a, b];
  const { bw, server, dialed } = clientOf(t, home, {}, gone);
  await bw.connect();
  gone.push(home);
  (await server.connection(1)).control("Goodbye", { "_bw.code": "shutting_down", "_bw.alt": "ws@a.h ws@b.h" });
  await dialed.count(6, "all of them, twice");
  assert.deepEqual(dialed.values.slice(1, 6), [a, b, home, a, b]);
  gone.length = 0;
  const second = await server.connection(2);
  await new Promise((done) => (bw.state.name == "connected" ? done() : bw.on("state", ({ name }) => name == "connected" && done())));
  const before = dialed.values.length;
  second.cut();
  await dialed.count(before + 1, "it comes back");
  assert.equal(dialed.values[before], home);
});

test("the client of a page goes home unless it is told to follow", async (t) => {
  for (const [{ Bothways, followOthers, heedGoodbye }, follows] of [[page, false], [page, true], [small, false], [small, true]]) {
    const { bw, server, dialed } = clientOf(t, "ws://h/p", {}, [], Bothways);
    if (follows) followOthers(bw);
    else heedGoodbye?.(bw);
    await bw.connect();
    (await server.connection(1)).control("Goodbye", { "_bw.code": "shutting_down", "_bw.alt": "ws@a.h" });
    await dialed.count(2, "it connects again");
    assert.equal(dialed.values[1], follows ? "ws://a.h/p" : "ws://h/p");
  }
});

test("however many addresses a server names, twelve count, and then the client is at home", async (t) => {
  const many = Array.from({ length: 1000 }, (_, number) => `ws@h:${number + 1}`);
  const gone = many.slice(0, 12).map((address) => address.replace("@", "://") + "/p");
  assert.deepEqual(await goes(t, "ws://h/p", many.join(" "), { gone, times: 13 }), [...gone, "ws://h/p"]);
});

test("after ten minutes a client goes home only", async (t) => {
  const clock = performance.now.bind(performance);
  let later = 0;
  t.mock.method(performance, "now", () => clock() + later);
  const { bw, server, dialed } = clientOf(t, "ws://h/p", {}, []);
  await bw.connect();
  (await server.connection(1)).control("Goodbye", { "_bw.code": "shutting_down", "_bw.alt": "ws@a.h" });
  later = 600_001;
  await dialed.count(2, "it comes back");
  assert.equal(dialed.values[1], "ws://h/p");
});

/** A server that refuses the first Hellos with these pairs. */
function refusing(t, home, refusals, options) {
  const { server, ...client } = clientOf(t, home, options);
  const letsIn = server.welcome;
  server.welcome = (connection, hello) => {
    const refusal = refusals.shift();
    if (!refusal) return letsIn(connection, hello);
    connection.answerHello(hello, { "_bw.ok": "", __rpcx_error__: "no", ...refusal }, 1);
    connection.cut();
  };
  return { server, ...client };
}

test("a server that lets nobody in may name others, and only the client's own address decides", async (t) => {
  const said = { "_bw.err": "shutting_down", "_bw.after": "1", "_bw.alt": "ws@a.h" };
  const away = { "_bw.err": "overloaded", "_bw.after": "3600000", "_bw.alt": "ws@b.h ws@c.h" };
  const { bw, dialed } = refusing(t, "ws://h/p", [said, away, said, { "_bw.err": "unauthenticated" }]);
  await bw.connect();
  assert.deepEqual(dialed.values, ["ws://h/p", "ws://a.h/p", "ws://h/p", "ws://a.h/p", "ws://h/p"]);
});

test("an address that is none does not end the client", async (t) => {
  const { bw, server } = clientOf(t, "ws://h/p", {
    dial: (address, events) => {
      if (address.includes(":99999")) throw new TypeError("no such port");
      return server.dial(address, events);
    },
  });
  await bw.connect();
  (await server.connection(1)).control("Goodbye", { "_bw.code": "shutting_down", "_bw.alt": "ws@h:99999" });
  await server.connection(2);
});
