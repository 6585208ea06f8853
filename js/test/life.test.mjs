// What a page goes through in its life: aborted calls, tokens that do not come, clocks that are set, servers that come back
// as others, and days.
import assert from "node:assert/strict";
import { getEventListeners, setMaxListeners } from "node:events";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { FakeServer } from "./fake.mjs";
import { Inbox, within } from "./helpers.mjs";
import { Bothways, everything } from "../dist/index.js";
import { isResponse, msgpack, ONEWAY, OTHER_BIT, PUSH_BIT } from "./built/internals.mjs";

const codec = msgpack();
const turn = () => new Promise(setImmediate);

function pair(t, options = {}, server = new FakeServer()) {
  const [errors, states, gaps] = [new Inbox(), new Inbox(), new Inbox()];
  const report = (error, where) => errors.put({ error, where });
  const bw = everything(new Bothways("fake", { dial: server.dial, backoffBase: 1, backoffMax: 20, heartbeat: 0, onError: report, ...options }));
  bw.on("state", states.put);
  bw.on("gap", gaps.put);
  t.after(() => bw.close());
  return { bw, server, states, errors, gaps };
}

const connected = (states, times) =>
  states.find(() => states.values.filter(({ name }) => name === "connected").length >= times, `connected ${times} times`);

test("a call may be aborted at every moment, for any reason", async (t) => {
  const server = new FakeServer();
  const { bw, states } = pair(t, { reconnect: "always" }, server);
  const begin = (signal) => bw.call("P", "m", null, { signal, timeout: 60_000 });
  const abort = (controller, reason) => {
    controller.abort(reason);
    return reason;
  };
  for (const reason of [new Error("enough"), 0, null, "", "a text"]) {
    // Before it is asked for, with a connection and without.
    const never = new AbortController();
    abort(never, reason);
    await assert.rejects(begin(never.signal), (error) => Object.is(error, reason));
  }

  // While it waits for the connection.
  server.welcome = undefined;
  void bw.connect();
  await turn();
  const waiting = new AbortController();
  const waits = begin(waiting.signal);
  await turn();
  abort(waiting, 0);
  await assert.rejects(waits, (error) => error === 0);

  // On its way; and what comes for it later is nobody's.
  server.welcome = new FakeServer().welcome;
  (await server.connection(1)).cut();
  await connected(states, 1);
  const second = await server.connection(2);
  const sent = new AbortController();
  const runs = begin(sent.signal);
  const frame = await second.next("m");
  abort(sent, null);
  await assert.rejects(runs, (error) => error === null);
  assert.equal((await second.next("Cancel")).meta_["_bw.seq"], `${frame.seq_}`);
  second.reply(frame, "late");

  // After it is settled, by a reply, a lost connection, or its time.
  const late = new AbortController();
  const done = begin(late.signal);
  second.reply(await second.next("m"), "well");
  assert.equal(await done, "well");
  const lost = begin(late.signal);
  await second.next("m");
  second.cut();
  await assert.rejects(lost, { code: "lost" });
  await assert.rejects(bw.call("P", "m", null, { signal: late.signal, timeout: 1 }), { name: "BothwaysError" });
  assert.equal(getEventListeners(late.signal, "abort").length, 0, "nothing listens to it any more");
  late.abort();
  await connected(states, 2);
  const third = await server.connection(3);
  const again = bw.call("P", "again");
  third.reply(await third.next("again"), "well");
  assert.equal(await again, "well");

  // A oneway request, at once on its way.
  const oneway = new AbortController();
  await bw.oneway("P", "n", 1, { signal: oneway.signal });
  assert.equal(getEventListeners(oneway.signal, "abort").length, 0);
});

test("a token that does not come is a failed try, and the next one asks again", async (t) => {
  const provided = [() => { throw new Error("thrown"); }, () => Promise.reject(new Error("refused")), () => new Promise(() => {}), () => "t4"];
  let asked = 0;
  const { bw, server, states } = pair(t, { token: () => provided[asked++](), connectTimeout: 30, reconnect: "always" });
  await bw.connect();
  assert.equal(asked, 4);
  const whys = states.values.map(({ why }) => why?.message).filter(Boolean);
  assert.deepEqual(whys.map((why) => why.replace(/.*: /, "")), ["thrown", "refused", "no token, or no answer in time"]);
  assert.equal((await server.connection(1)).frames.values[0].meta_.__AUTH, "t4");

  // One that comes too late is not used.
  let give;
  provided.push(() => new Promise((done) => (give = done)), () => "t6");
  (await server.connection(1)).cut();
  await connected(states, 2);
  give("t5");
  await turn();
  assert.equal(server.connections.values.length, 2);
  assert.equal((await server.connection(2)).frames.values[0].meta_.__AUTH, "t6");

  // Closed while it is asked for: nothing comes after that.
  provided.push(() => new Promise((done) => (give = done)));
  (await server.connection(2)).cut();
  await within((async () => { while (asked < 7) await turn(); })(), "it is asked for");
  bw.close();
  give("t7");
  await turn();
  assert.equal(server.connections.values.length, 2);
});

test("a clock that is set, forth or back, ends no connection and no call", async (t) => {
  const { now } = Date;
  t.after(() => (Date.now = now));
  const { bw, server, states } = pair(t, { heartbeat: 50, heartbeatTimeout: 1000 });
  await bw.connect();
  const first = await server.connection(1);
  server.onFrame = (connection, frame) => {
    // It answers whatever it is asked.
    if (frame.flags_ === 0x40 && !frame.meta_["_bw.v"]) connection.frame({ flags: 0xc0, seq: frame.seq_ });
  };
  for (const jump of [86_400_000, -86_400_000]) {
    const call = bw.call("P", "m", null, { timeout: 20_000 });
    const frame = await first.next("m");
    Date.now = () => now() + jump;
    const asked = () => first.frames.values.filter(({ flags_ }) => flags_ === 0x40).length;
    const before = asked();
    await first.frames.find(() => asked() >= before + 3, "it asks on");
    first.reply(frame, "well");
    assert.equal(await call, "well");
  }
  assert.equal(states.values.length, 2);
});

test("handlers that never end hold what is bounded, and the client goes on calling", async (t) => {
  const { bw, server, states } = pair(t, { queueMessagesMax: 20, handlersMax: 2 });
  let release;
  const got = new Inbox();
  bw.onPush("T", "push", (value) => (got.put(value), new Promise((done) => (release = done))));
  bw.handle("C", { stuck: () => new Promise(() => {}) });
  await bw.connect();
  const first = await server.connection(1);
  for (let n = 1; n <= 22; n++) first.push(n, n);
  assert.equal(first.isClosed, true, "the queue is full, and a resume brings the rest");
  await connected(states, 2);
  const second = await server.connection(2);
  assert.equal(second.frames.values[0].meta_["_bw.rcv"], "21");
  const call = bw.call("P", "m");
  second.reply(await second.next("m"), "well");
  assert.equal(await call, "well");

  // The same call, again and again: one run, and places without number for none of them.
  for (let n = 0; n < 1100; n++) second.call(n + 1, "stuck", 0, { "_bw.id": "same" });
  await second.frames.find((frame) => isResponse(frame) && frame.meta_["_bw.err"] === "overloaded", "there is no more room");
  assert.equal(second.isClosed, false);
  second.call(2000, "stuck", 0);
  for (let n = 1; n <= 21; n++) {
    await got.count(n, `push ${n}`);
    release();
  }
  await second.frames.find(({ meta_ }) => meta_["_bw.ack"] === "21,21", "all are acknowledged");
});

test("a server that comes back as another one is a gap, and its history counts from there", async (t) => {
  const { bw, server, states } = pair(t);
  const [got, gaps, sessions] = [new Inbox(), new Inbox(), new Inbox()];
  bw.on("session", sessions.put);
  const sub = bw.subscribe("news.a", (value, { position }) => got.put([value, position]));
  sub.on("gap", gaps.put);
  await bw.connect();
  const first = await server.connection(1);
  first.reply(await first.next("Subscribe"), { Recovered: false, Epoch: 7, Offset: 40 });
  assert.deepEqual(await sub.ready, { recovered: true });
  const publish = (connection, offset, value, epoch, at) =>
    connection.push(offset, value, { meta: { "_bw.t": "news.a", "_bw.te": `${epoch}`, "_bw.to": `${at}` } });
  publish(first, 1, "old", 7, 41);
  await got.count(1, "a message");

  // Another process, at the same address: it knows neither the session nor the epoch.
  server.welcome = (connection, hello) => connection.answerHello(hello, { "_bw.sid": "other", "_bw.key": "k", "_bw.off": "0", "_bw.why": "unknown" });
  first.cut();
  await connected(states, 2);
  const second = await server.connection(2);
  const asked = await second.next("Subscribe");
  assert.deepEqual(codec.decode(asked.payload_), { Topic: "news.a", Epoch: 7, Offset: 41, Part: true, Ordered: true });
  second.reply(asked, { Recovered: false, Epoch: 9, Offset: 3 });
  await gaps.count(1, "a gap");
  assert.deepEqual([sessions.values, sub.position], [[{ lost: "unknown" }], { epoch: 9n, offset: 3n }]);
  publish(second, 1, "new", 9, 4);
  await got.count(2, "a message of the new one");
  await second.next("Ack");
  assert.deepEqual([got.values[1], sub.position], [["new", { epoch: 9n, offset: 4n }], { epoch: 9n, offset: 4n }]);
  assert.equal(gaps.values.length, 1);
});

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc");

/** Bytes in use after a collection. */
async function used() {
  for (let n = 0; n < 3; n++) {
    collect();
    await turn();
  }
  return process.memoryUsage().heapUsed;
}

test("a page that runs for days takes no more memory", async (t) => {
  const server = new FakeServer();
  server.onFrame = (connection, frame) => {
    if (/^(Unsubscribe|Subscribe|m)$/.test(frame.method_)) connection.reply(frame, { Epoch: 1, Offset: 1 });
    // The test's own notes are not the client's.
    connection.frames.values.length = 0;
  };
  const { bw, states } = pair(t, {}, server);
  bw.onPush("T", "push", (value) => {
    if (value % 3 === 0) throw new Error("a third fails");
  });
  bw.handle("C", { m: (n) => "x".repeat(n % 2000) });
  await bw.connect();

  let offset = 0;
  const live = async (rounds) => {
    for (let round = 0; round < rounds; round++) {
      const connection = server.connections.values.at(-1);
      for (let n = 0; n < 50; n++) {
        offset++;
        connection.push(offset, offset, { meta: { "_bw.ik": `key ${offset}`, ...(n % 5 === 0 && { "_bw.lk": `latest ${n}` }) } });
        connection.call(offset, "m", offset, { "_bw.id": `call ${offset}` });
        connection.control("Cancel", { "_bw.id": `never ${offset}` });
      }
      const sub = bw.subscribe(`topic ${round} ${offset}`, () => {});
      const stop = bw.onPush(`P${offset}`, "m", () => {});
      const controller = new AbortController();
      setMaxListeners(0, controller.signal);
      await Promise.all([sub.ready, ...Array.from({ length: 20 }, () => bw.call("P", "m", null, { signal: controller.signal }))]);
      stop();
      await sub.unsubscribe();
      await turn();
      if (round % 10 === 9) {
        const times = states.values.filter(({ name }) => name === "connected").length;
        connection.cut();
        // Subscribed and left while there is no connection.
        bw.subscribe(`away ${offset}`, () => {}).unsubscribe();
        await connected(states, times + 1);
        states.values.splice(0, states.values.length, ...states.values.filter(({ name }) => name === "connected"));
      }
    }
    server.connections.values.splice(0, server.connections.values.length - 1);
    server.closed.values.length = 0;
    return used();
  };
  const before = await live(60);
  const after = await live(240);
  t.diagnostic(`${offset} pushes and as many calls back: ${Math.round(before / 1024)} KiB, then ${Math.round(after / 1024)} KiB`);
  assert.ok(after - before < 1 << 20, `${after - before} bytes more`);
});

test("what messages with keys said is not kept", async (t) => {
  const { bw, server } = pair(t);
  bw.onPush("T", "push", () => {});
  await bw.connect();
  const connection = await server.connection(1);
  const payload = codec.encode(new Uint8Array(64 << 10));
  await used();
  const before = process.memoryUsage().arrayBuffers;
  for (let n = 1; n <= 200; n++) connection.push(n, 0, { payload, meta: { "_bw.ik": `key ${n}` } });
  await connection.frames.find(({ meta_ }) => meta_["_bw.ack"] === "200,200", "all are handled");
  await used();
  const more = process.memoryUsage().arrayBuffers - before;
  assert.ok(more < 2 << 20, `${more} bytes more`);
});

/** A page for the client: a window and a document that are told what happens. */
function page(t) {
  const window = new EventTarget();
  const document = { visibilityState: "visible" };
  const kept = ["document", "addEventListener"].map((name) => [name, globalThis[name]]);
  const live = new Set();
  globalThis.document = document;
  globalThis.addEventListener = (name, run, options) => {
    live.add(name);
    options.signal.addEventListener("abort", () => live.delete(name));
    window.addEventListener(name, run, options);
  };
  t.after(() => kept.forEach(([name, value]) => (globalThis[name] = value)));
  return { document, live, tell: (name, more) => window.dispatchEvent(Object.assign(new Event(name), more)) };
}

test("a page that sleeps and wakes, at every moment of its connection", async (t) => {
  t.mock.timers.enable({ apis: ["setInterval"] });
  const { tell, live, document } = page(t);
  const server = new FakeServer();
  let give;
  let asked = 0;
  const { bw, states } = pair(t, { token: () => (++asked, asked === 2 ? new Promise((done) => (give = done)) : "t"), backoffBase: 1000, backoffMax: 1000 }, server);
  await bw.connect();
  assert.deepEqual([...live].sort(), ["freeze", "offline", "online", "pagehide", "pageshow", "resume", "visibilitychange"]);

  // Up: it ends the connection, and comes back when it wakes, at once.
  tell("freeze");
  assert.equal((await server.connection(1)).isClosed, true);
  assert.match(states.values.at(-1).why.message, /sleeps/);
  tell("resume");
  // While it waits for the token, which comes when the page sleeps.
  await within((async () => { while (asked < 2) await turn(); })(), "a token is asked for");
  tell("freeze");
  give("t");
  await turn();
  document.visibilityState = "visible";
  tell("visibilitychange");
  await connected(states, 2);
  assert.equal(bw.state.resumed, true);

  // While it is greeted.
  const { welcome } = server;
  server.welcome = undefined;
  server.connections.values.at(-1).cut();
  tell("online");
  const count = server.connections.values.length;
  await server.connection(count + 1);
  await turn();
  tell("pagehide", { persisted: true });
  assert.equal(server.connections.values.at(-1).isClosed, true);
  server.welcome = welcome;
  tell("pageshow", { persisted: true });
  await connected(states, 3);

  // While it waits for the next try: a second of back-off is not waited for.
  server.connections.values.at(-1).cut();
  tell("freeze");
  tell("freeze");
  tell("resume");
  await connected(states, 4);

  // Shown, at a server that says nothing any more: left after three seconds, and not after the heartbeats' ten.
  const before = server.connections.values.at(-1);
  tell("pageshow");
  await turn();
  assert.ok(before.frames.values.length > 1, "it is asked");
  t.mock.timers.tick(2999);
  assert.equal(before.isClosed, false);
  t.mock.timers.tick(1);
  assert.equal(before.isClosed, true);
  await connected(states, 5);

  // Left for good.
  tell("pagehide", { persisted: false });
  assert.equal(bw.state.name, "closed");
  assert.equal(live.size, 0, "nothing listens any more");
  tell("pageshow");
  assert.equal(bw.state.name, "closed");
});
