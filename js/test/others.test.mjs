// A server that stops names other addresses, and the client goes there as far as it trusts them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeServer } from "./fake.mjs";
import { Inbox } from "./helpers.mjs";
import { Bothways } from "../dist/index.js";
import { Bothways as Small, followOthers } from "../dist/json.js";

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

test("the small client goes home unless it is told to follow", async (t) => {
  for (const follows of [false, true]) {
    const { bw, server, dialed } = clientOf(t, "ws://h/p", {}, [], Small);
    if (follows) followOthers(bw);
    await bw.connect();
    (await server.connection(1)).control("Goodbye", { "_bw.code": "shutting_down", "_bw.alt": "ws@a.h" });
    await dialed.count(2, "it connects again");
    assert.equal(dialed.values[1], follows ? "ws://a.h/p" : "ws://h/p");
  }
});
