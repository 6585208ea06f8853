// The client against a server that does what the test says, right or wrong.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once, setMaxListeners } from "node:events";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { FakeServer } from "./fake.mjs";
import { Inbox, root, within } from "./helpers.mjs";
import { Bothways, everything, keepSession } from "../dist/index.js";
import { HEARTBEAT, isHeartbeat, isResponse, ONEWAY, OTHER_BIT, PUSH_BIT, RESPONSE, msgpack } from "./built/internals.mjs";

const codec = msgpack();

/** A client at such a server, with quick back-off, and what it tells. */
function pair(t, options = {}, server = new FakeServer()) {
  const errors = new Inbox();
  const bw = everything(new Bothways("fake", { dial: server.dial, backoffBase: 1, backoffMax: 20, heartbeat: 0, onError: (error, where) => errors.put({ error, where }), ...options }));
  const [states, sessions, gaps, pushes] = [new Inbox(), new Inbox(), new Inbox(), new Inbox()];
  bw.on("state", states.put);
  bw.on("session", sessions.put);
  bw.on("gap", gaps.put);
  t.after(() => bw.close());
  return { bw, server, states, sessions, gaps, pushes, errors };
}

const connected = async (states, times = 1) => {
  const all = () => states.values.filter(({ name }) => name === "connected");
  await states.find(() => all().length >= times, `connected ${times} times`);
  return all()[times - 1];
};

/** The pairs of the newest acknowledgement that says this. */
const acked = (connection, ack) => connection.frames.find(({ method_, meta_ }) => method_ === "Ack" && meta_["_bw.ack"] === ack, `the Ack ${ack}`);

test("a Hello says who comes, and its token goes with every request", async (t) => {
  const { bw, server, states } = pair(t, { token: "tok", device: "laptop" });
  assert.equal(bw.state.name, "idle");
  await assert.rejects(bw.call("P", "m"), { code: "not_connected" });
  bw.handle("Chat", { last: () => 1 });
  await bw.connect();
  assert.deepEqual(states.values.map(({ name }) => name), ["connecting", "connected"]);
  const connection = await server.connection(1);
  const [hello] = connection.frames.values;
  assert.equal(hello.meta_.__AUTH, "tok");
  assert.equal(hello.meta_["_bw.fns"], "Chat.last,_bothways.Presence");
  assert.equal(hello.meta_["_bw.max"], `${8 << 20}`);
  assert.equal(hello.meta_["_bw.dev"], "laptop");

  const call = bw.call("P", "m", { a: 1 }, { meta: { k: "v" }, timeout: 5000 });
  const frame = await connection.next("m");
  const { __ServerTimeout: time, ...rest } = frame.meta_;
  assert.ok(time > 4000 && time <= 5000, time);
  assert.deepEqual(rest, { __AUTH: "tok", k: "v" });
  connection.reply(frame, { b: 2 }, { seen: "v", "_bw.x": "hidden" });
  assert.deepEqual(await call, { b: 2 });
  assert.throws(() => bw.handle("Chat", { first: () => 1 }), /before connect/);
});

test("replies come in any order, and errors are what the server says", async (t) => {
  const { bw, server } = pair(t);
  await bw.connect();
  const connection = await server.connection(1);
  const calls = [1, 2, 3].map((n) => bw.request("P", `m${n}`));
  const frames = await Promise.all([1, 2, 3].map((n) => connection.next(`m${n}`)));
  const detail = Buffer.from(codec.encode({ left: 3 })).toString("base64");
  connection.reply(frames[2], "three", { k: "v", "_bw.err": "hidden" });
  connection.reply(frames[1], null, { __rpcx_error__: "busy", "_bw.err": "overloaded", "_bw.app": "E1", "_bw.detail": detail, "_bw.dt": "Left" }, 1);
  connection.reply(frames[0], null, { __rpcx_error__: "boom" }, 1);
  connection.reply(frames[0], "late");
  assert.deepEqual(await calls[2], { value: "three", meta: Object.assign(Object.create(null), { k: "v" }) });
  await assert.rejects(calls[1], { code: "overloaded", message: "busy", appCode: "E1", detail: { left: 3 }, detailType: "Left", maybeExecuted: false });
  await assert.rejects(calls[0], { code: "remote", message: "boom", maybeExecuted: true });
});

test("a call ends with its time or its signal, and the server is told", async (t) => {
  const { bw, server } = pair(t);
  await bw.connect();
  const connection = await server.connection(1);
  await assert.rejects(bw.call("P", "slow", null, { timeout: 5 }), { code: "timeout", maybeExecuted: true });
  const slow = await connection.next("slow");
  assert.equal((await connection.next("Cancel")).meta_["_bw.seq"], `${slow.seq_}`);

  const controller = new AbortController();
  const call = bw.call("P", "aborted", null, { signal: controller.signal });
  const aborted = await connection.next("aborted");
  controller.abort(new Error("enough"));
  await assert.rejects(call, /enough/);
  assert.equal((await connection.next("Cancel")).meta_["_bw.seq"], `${aborted.seq_}`);
  await assert.rejects(bw.call("P", "never", null, { signal: AbortSignal.abort(new Error("at once")) }), /at once/);
  assert.equal(connection.frames.values.some(({ method_ }) => method_ === "never"), false);
});

test("names and values that a peer could mistake for the framework's are refused", async (t) => {
  const { bw } = pair(t);
  await bw.connect();
  for (const [path, meta] of [["_bothways", {}], ["_bothways.Other", {}], ["P", { "_bw.x": "" }], ["P", { __AUTH: "" }]]) {
    await assert.rejects(bw.call(path, "m", null, { meta }), TypeError);
    await assert.rejects(bw.oneway(path, "m", null, { meta }), TypeError);
  }
  await assert.rejects(bw.call("P", "m", () => {}), { code: "encode" });
  await assert.rejects(bw.call("P", "m", new Uint8Array(9 << 20)), { code: "too_large" });
});

test("what the server's frame limit does not let through is not sent", async (t) => {
  const server = new FakeServer();
  server.welcome = (connection, hello) => connection.answerHello(hello, { "_bw.max": "1000" });
  const { bw } = pair(t, {}, server);
  await bw.connect();
  await assert.rejects(bw.call("P", "m", new Uint8Array(1000)), { code: "too_large", maybeExecuted: false });
});

test("a resolved promise is the acknowledgement", async (t) => {
  const { bw, server, pushes } = pair(t);
  let release;
  const held = new Promise((done) => (release = done));
  bw.onPush("T", "push", async (value, message) => {
    pushes.put([value, message.path, message.meta.k]);
    if (value === 2) await held;
  });
  await bw.connect();
  const connection = await server.connection(1);
  for (const n of [1, 2, 3]) connection.push(n, n, { meta: { k: `v${n}`, "_bw.x": "" } });
  await acked(connection, "3,1");
  assert.deepEqual(pushes.values, [[1, "T", "v1"], [2, "T", "v2"]], "one after the other");
  release();
  await acked(connection, "3,3");
  assert.equal(pushes.values.length, 3);
});

test("thirty-two messages are acknowledged at once", async (t) => {
  const { bw, server } = pair(t);
  bw.onPush("T", "push", () => {});
  await bw.connect();
  const connection = await server.connection(1);
  for (let n = 1; n <= 32; n++) connection.push(n, n);
  await Promise.resolve();
  assert.ok(connection.frames.values.some(({ method_ }) => method_ === "Ack"), "without a timer");
});

test("what the application does not handle is said so", async (t) => {
  const { bw, server, errors } = pair(t);
  const unhandled = new Inbox();
  bw.on("unhandled", unhandled.put);
  bw.onPush("T", "push", (value) => {
    if (value === "throws") throw new Error("no");
    if (value === "rejects") return Promise.reject(new Error("no"));
  });
  await bw.connect();
  const connection = await server.connection(1);
  connection.push(1, "fine");
  connection.push(2, "throws");
  connection.push(3, "rejects");
  connection.push(4, "nobody", { method: "other" });
  connection.push(5, 0, { payload: new Uint8Array([0xc1]) });
  connection.push(6, "fine");
  const ack = await acked(connection, "6,6");
  assert.equal(ack.meta_["_bw.nack"], "2-3:error,4-4:no_handler,5-5:bad_arguments");
  assert.equal(unhandled.values[0].method, "other");
  assert.equal(errors.values.length, 1, "one a second");
});

test("only the newest value of a key waits", async (t) => {
  const { bw, server, pushes } = pair(t);
  let release;
  const held = new Promise((done) => (release = done));
  bw.onPush("T", "push", async (value) => {
    pushes.put(value);
    await held;
  });
  await bw.connect();
  const connection = await server.connection(1);
  connection.push(1, "first");
  for (const n of [2, 3, 4]) connection.push(n, n, { meta: { "_bw.lk": "price" } });
  release();
  const ack = await acked(connection, "4,4");
  assert.deepEqual(pushes.values, ["first", 4]);
  const nacks = connection.frames.values.map(({ meta_ }) => meta_["_bw.nack"]).filter(Boolean);
  assert.equal(nacks.join(), "2-3:superseded", String(ack));
});

test("a message with a key is given once, and ends once", async (t) => {
  const { bw, server, pushes } = pair(t);
  const seen = [];
  bw.onPush("T", "push", (value) => {
    pushes.put(value);
    if (value === "bad" && !seen.push(value)) return;
    if (value === "bad" && seen.length === 1) throw new Error("no");
  });
  await bw.connect();
  const connection = await server.connection(1);
  const keyed = (offset, value, key) => connection.push(offset, value, { meta: { "_bw.ik": key } });
  keyed(1, "a", "one");
  keyed(2, "a", "one");
  keyed(3, "bad", "two");
  await acked(connection, "3,3");
  keyed(4, "a", "one");
  keyed(5, "bad", "two");
  await acked(connection, "5,5");
  assert.deepEqual(pushes.values, ["a", "bad", "bad"], "one that failed may come again");
  const nacks = connection.frames.values.map(({ meta_ }) => meta_["_bw.nack"]).filter(Boolean);
  assert.equal(nacks.join(), "3-3:error");
});

test("a lost connection is resumed where it was, and repetitions are dropped", async (t) => {
  const { bw, server, states, pushes } = pair(t);
  bw.onPush("T", "push", (value) => {
    pushes.put(value);
    if (value === 2) throw new Error("no");
  });
  await bw.connect();
  const first = await server.connection(1);
  for (const n of [1, 2, 3]) first.push(n, n);
  await pushes.count(3, "three pushes");
  const lost = bw.call("P", "m");
  await first.next("m");
  first.cut();
  await assert.rejects(lost, { code: "lost", maybeExecuted: true });

  assert.equal((await connected(states, 2)).resumed, true);
  const second = await server.connection(2);
  const hello = second.frames.values[0].meta_;
  assert.deepEqual(
    ["sid", "key", "off", "rcv", "try", "nack"].map((name) => hello[`_bw.${name}`]),
    ["s1", "secret", "3", "3", "1", "2-2:error"],
  );
  second.push(3, 3);
  second.push(4, 4);
  await acked(second, "4,4");
  assert.deepEqual(pushes.values, [1, 2, 3, 4]);
  assert.ok(states.values.some(({ name, why }) => name === "reconnecting" && /cut by the test/.test(why.message)));
});

test("offsets beyond 2^53 are exact", async (t) => {
  const server = new FakeServer();
  const at = 2n ** 60n + 1n;
  server.welcome = (connection, hello) => {
    const sid = hello.meta_["_bw.sid"];
    connection.answerHello(hello, { "_bw.sid": "s", "_bw.key": "k", "_bw.off": `${at}`, ...(sid && { "_bw.res": "1" }) });
  };
  const { bw, pushes } = pair(t, {}, server);
  bw.onPush("T", "push", pushes.put);
  await bw.connect();
  const connection = await server.connection(1);
  connection.push(at + 1n, "a");
  connection.push(at + 2n, "b");
  await acked(connection, `${at + 2n},${at + 2n}`);
  connection.cut();
  const again = await server.connection(2);
  await again.frames.count(1, "a Hello");
  assert.equal(again.frames.values[0].meta_["_bw.off"], `${at + 2n}`);
});

test("an offset that is left out ends the connection, and Skip fills its place", async (t) => {
  const { bw, server, pushes, states } = pair(t);
  bw.onPush("T", "push", pushes.put);
  await bw.connect();
  const first = await server.connection(1);
  first.push(1, 1);
  first.control("Skip", {}, 2);
  first.push(3, 3);
  await acked(first, "3,3");
  first.push(5, 5);
  await server.closed.count(1, "the connection is closed");
  await connected(states, 2);
  assert.deepEqual(pushes.values, [1, 3]);
});

test("a session that is lost is said so, and the client goes on in another", async (t) => {
  const { bw, server, states, sessions } = pair(t);
  await bw.connect();
  server.welcome = (connection, hello) => connection.answerHello(hello, { "_bw.sid": "s2", "_bw.key": "k2", "_bw.why": "expired" });
  (await server.connection(1)).cut();
  assert.equal((await connected(states, 2)).resumed, false);
  assert.deepEqual(sessions.values, [{ lost: "expired" }]);
  assert.equal(bw.sessionId, "s2");
});

test("a client that was sent away stays away", async (t) => {
  for (const code of ["kicked", "expired", "revoked"]) {
    const { bw, server } = pair(t);
    await bw.connect();
    (await server.connection(1)).control("Goodbye", { "_bw.code": code, "_bw.why": "go", "_bw.after": "0" });
    assert.deepEqual([bw.state.name, bw.state.code], ["closed", code]);
    await assert.rejects(bw.call("P", "m"), { code: "closed", message: "go" });
  }
  const { bw, server, states } = pair(t);
  await bw.connect();
  server.welcome = (connection, hello) => connection.answerHello(hello, { "_bw.sid": "s2", "_bw.key": "k", "_bw.why": "kicked", "_bw.code": "kicked", "_bw.words": "go" });
  (await server.connection(1)).cut();
  await states.find(({ name, code }) => name === "closed" && code === "kicked", "it is closed");
  await (await server.connection(2)).next("Leave");
  assert.equal(bw.sessionId, "");
});

test("after a Goodbye what runs is answered, and the next connection comes when the server said", async (t) => {
  const { bw, server, states, pushes } = pair(t);
  bw.onPush("T", "push", pushes.put);
  await bw.connect();
  const first = await server.connection(1);
  const running = bw.call("P", "running");
  const frame = await first.next("running");
  first.push(1, 1);
  await pushes.count(1, "a push");
  const began = Date.now();
  first.control("Goodbye", { "_bw.code": "shutting_down", "_bw.after": "150" });
  const waits = bw.call("P", "waits");
  assert.equal(bw.state.name, "reconnecting");
  assert.ok(bw.state.in >= 150);
  const second = await server.connection(2);
  assert.ok(Date.now() - began >= 145);
  await connected(states, 2);
  assert.equal(first.isClosed, false);
  first.reply(frame, "done");
  assert.equal(await running, "done");
  assert.equal(first.isClosed, true, "it is of no use any more");
  second.reply(await second.next("waits"), "well");
  assert.equal(await waits, "well");
  assert.equal(second.frames.values[0].meta_["_bw.rcv"], "1");
});

test("a session that another tab has taken over is left to it", async (t) => {
  const { bw, server, states, sessions } = pair(t);
  await bw.connect();
  const first = await server.connection(1);
  first.control("Goodbye", { "_bw.code": "moved" });
  await connected(states, 2);
  assert.deepEqual(sessions.values, [{ lost: "moved" }]);
  assert.equal((await server.connection(2)).frames.values[0].meta_["_bw.sid"], undefined);
  assert.equal(bw.sessionId, "s2");
});

test("a token that is refused is asked for once more, and then no more", async (t) => {
  const server = new FakeServer();
  const right = server.welcome;
  const refuse = (connection, hello) => connection.answerHello(hello, { "_bw.ok": "", "_bw.err": "unauthenticated", __rpcx_error__: "who?" }, 1);
  server.welcome = (connection, hello) => (hello.meta_.__AUTH === "t2" ? right : refuse)(connection, hello);
  let tokens = 0;
  const { bw } = pair(t, { token: async () => `t${++tokens}` }, server);
  await bw.connect();
  assert.equal(tokens, 2);

  server.welcome = refuse;
  (await server.connection(2)).cut();
  await within(new Promise((done) => bw.on("state", ({ name, code }) => name === "closed" && done(assert.equal(code, "unauthenticated")))), "it is closed");
  assert.equal(tokens, 4);
  const fixed = pair(t, { token: "t1" }, server);
  await assert.rejects(fixed.bw.connect(), { code: "unauthenticated", message: "who?" });
  assert.equal(server.connections.values.length, 5, "a fixed token is not tried again");
});

test("a call whose token has run out is repeated once with the next one", async (t) => {
  let tokens = 0;
  const { bw, server } = pair(t, { token: () => `t${++tokens}` });
  await bw.connect();
  const first = await server.connection(1);
  const call = bw.call("P", "m");
  first.reply(await first.next("m"), null, { __rpcx_error__: "old", "_bw.err": "unauthenticated" }, 1);
  first.control("Goodbye", { "_bw.code": "unauthenticated" });
  const second = await server.connection(2);
  const frame = await second.next("m");
  assert.equal(frame.meta_.__AUTH, "t2");
  second.reply(frame, "well");
  assert.equal(await call, "well");

  const again = bw.call("P", "n");
  second.reply(await second.next("n"), null, { __rpcx_error__: "old", "_bw.err": "unauthenticated" }, 1);
  const third = await server.connection(3);
  third.reply(await third.next("n"), null, { __rpcx_error__: "old", "_bw.err": "unauthenticated" }, 1);
  await assert.rejects(again, { code: "unauthenticated" });
  assert.equal(server.connections.values.length, 3);
});

test("a server that is full is asked again when it said", async (t) => {
  const server = new FakeServer();
  const { welcome } = server;
  server.welcome = (connection, hello) => {
    server.welcome = welcome;
    connection.answerHello(hello, { "_bw.ok": "", "_bw.err": "overloaded", __rpcx_error__: "full", "_bw.after": "100" }, 1);
  };
  const { bw } = pair(t, {}, server);
  const began = Date.now();
  await bw.connect();
  assert.ok(Date.now() - began >= 95);
});

test("a first try that fails is told, or repeated where that is wanted", async (t) => {
  const server = new FakeServer();
  const dial = (address, events) => {
    if (server.connections.values.length < 3) {
      server.connections.put({});
      queueMicrotask(() => events.closed("refused"));
      return { send() {}, close() {}, buffered: 0 };
    }
    return server.dial(address, events);
  };
  const once = pair(t, { dial }, server);
  await assert.rejects(once.bw.connect(), { code: "lost", message: "refused" });
  assert.equal(once.bw.state.name, "closed");
  const always = pair(t, { dial, reconnect: "always" }, server);
  await always.bw.connect();
  const never = pair(t, { reconnect: "never" }, server);
  await never.bw.connect();
  server.connections.values.at(-1).cut();
  assert.equal(never.bw.state.name, "closed");
  await once.bw.connect();
  assert.equal(once.bw.state.name, "connected", "a closed client may connect again");
});

test("a server that does not answer the Hello is given up", async (t) => {
  const server = new FakeServer();
  server.welcome = undefined;
  const { bw } = pair(t, { connectTimeout: 20 }, server);
  await assert.rejects(bw.connect(), { code: "lost", message: /no answer in time/ });
  server.opens = false;
  await assert.rejects(bw.connect(), { code: "lost" });
  const late = pair(t, { connectTimeout: 20, token: () => new Promise(() => {}) });
  await assert.rejects(late.bw.connect(), /no token/);
});

test("calls wait for a connection for a time, and not without bound", async (t) => {
  const server = new FakeServer();
  server.welcome = undefined;
  const { bw } = pair(t, { connectionWait: 30, callsMax: 2, reconnect: "always" }, server);
  void bw.connect().catch(() => {});
  const calls = [1, 2, 3].map(() => bw.call("P", "m"));
  await assert.rejects(calls[2], { code: "queue_full" });
  await assert.rejects(calls[0], { code: "not_connected", maybeExecuted: false });
  await assert.rejects(calls[1], { code: "not_connected" });
  await assert.rejects(bw.call("P", "m", new Uint8Array(17 << 20)), { code: "queue_full" });
  bw.close();
});

test("a plain server is called and heard, and knows no sessions", async (t) => {
  const server = new FakeServer();
  server.welcome = (connection, hello) => connection.frame({ flags: RESPONSE | HEARTBEAT, type: 3, seq: hello.seq_, meta: hello.meta_ });
  const { bw, pushes } = pair(t, {}, server);
  bw.onPush("T", "push", (value, message) => pushes.put([value, message.topic]));
  await bw.connect();
  assert.equal(bw.sessionId, "");
  const connection = await server.connection(1);
  connection.frame({ flags: ONEWAY, seq: 7n, path: "T", method: "push", meta: { "_bw.t": "mine" }, payload: Buffer.from("abc") });
  connection.frame({ flags: ONEWAY, seq: PUSH_BIT | 9n, path: "_bothways", method: "Goodbye", payload: Buffer.from("abc") });
  await pushes.count(1, "a push");
  assert.deepEqual([Buffer.from(pushes.values[0][0]).toString(), pushes.values[0][1]], ["abc", undefined]);
  connection.frame({ seq: PUSH_BIT | OTHER_BIT | 1n, path: "C", method: "m" });
  await server.closed.count(1, "a call from a plain server ends the connection");
});

test("the server's calls are answered, refused, cancelled and timed", async (t) => {
  const { bw, server } = pair(t, { handlersMax: 2 });
  const aborted = new Inbox();
  bw.handle("C", {
    double: async (n, call) => ({ n: 2 * n, k: call.meta.k }),
    fails: () => {
      throw Object.assign(new Error("no"), { appCode: "E7" });
    },
    waits: (_, { signal }) => new Promise((done) => signal.addEventListener("abort", () => done(aborted.put(signal.reason)))),
  });
  await bw.connect();
  const connection = await server.connection(1);
  const reply = (number) =>
    connection.frames.find((frame) => isResponse(frame) && frame.seq_ === (PUSH_BIT | OTHER_BIT | BigInt(number)), `the reply to ${number}`);
  connection.call(1, "double", 4, { k: "v", "_bw.id": "i1" });
  assert.deepEqual(codec.decode((await reply(1)).payload_), { n: 8, k: "v" });
  connection.call(2, "fails", 4);
  assert.deepEqual([(await reply(2)).meta_.__rpcx_error__, (await reply(2)).meta_["_bw.app"]], ["no", "E7"]);
  connection.call(3, "none", 4);
  assert.equal((await reply(3)).meta_["_bw.err"], "not_found");
  connection.frame({ type: 3, seq: PUSH_BIT | OTHER_BIT | 4n, path: "C", method: "double", payload: new Uint8Array([0xc1]) });
  assert.equal((await reply(4)).meta_["_bw.err"], "bad_arguments");

  connection.call(5, "waits", 0);
  connection.call(6, "waits", 0, { __ServerTimeout: "20" });
  connection.call(7, "waits", 0);
  assert.equal((await reply(7)).meta_["_bw.err"], "overloaded");
  assert.equal((await reply(6)).meta_["_bw.err"], "timeout");
  connection.control("Cancel", { "_bw.seq": `${PUSH_BIT | OTHER_BIT | 5n}` });
  await aborted.count(2, "both handlers heard of it");
  assert.equal(connection.frames.values.some(({ seq_ }) => seq_ === (PUSH_BIT | OTHER_BIT | 5n)), false);
});

test("a call that is sent again runs once, and one that was given up does not run", async (t) => {
  const { bw, server, states } = pair(t);
  let runs = 0;
  let release;
  const held = new Promise((done) => (release = done));
  bw.handle("C", { count: async () => (await held, ++runs) });
  await bw.connect();
  const first = await server.connection(1);
  first.call(1, "count", 0, { "_bw.id": "same" });
  await new Promise(setImmediate);
  first.cut();
  await connected(states, 2);
  const second = await server.connection(2);
  second.control("Cancel", { "_bw.id": "given up" });
  second.call(8, "count", 0, { "_bw.id": "given up" });
  second.call(9, "count", 0, { "_bw.id": "same" });
  release();
  second.call(10, "count", 0, { "_bw.id": "same" });
  const reply = (number) => second.frames.find((frame) => isResponse(frame) && frame.seq_ === (PUSH_BIT | OTHER_BIT | number), `the reply to ${number}`);
  assert.equal(codec.decode((await reply(9n)).payload_), 1);
  assert.equal(codec.decode((await reply(10n)).payload_), 1);
  assert.equal((await reply(8n)).meta_["_bw.err"], "timeout");
});

test("heartbeats are answered, and a server that is silent is left", async (t) => {
  const { bw, server, states } = pair(t, { heartbeat: 100, heartbeatTimeout: 100 });
  await bw.connect();
  const first = await server.connection(1);
  first.frame({ flags: HEARTBEAT, type: 3, seq: 99n, payload: new Uint8Array([1, 2]) });
  const answer = await first.frames.find((frame) => isHeartbeat(frame) && isResponse(frame), "an answer");
  assert.deepEqual([answer.seq_, [...answer.payload_]], [99n, [1, 2]]);

  const lives = setInterval(() => first.frame({ flags: HEARTBEAT | RESPONSE, seq: 1n }), 10);
  await pause(500);
  clearInterval(lives);
  assert.equal(first.isClosed, false, "bytes are a sign of life");
  await connected(states, 2);
  assert.ok(states.values.some(({ why }) => /does not answer/.test(why?.message)));
});

test("whatever a server does wrong ends its connection, and the client comes back", async (t) => {
  const { bw, server, states } = pair(t);
  await bw.connect();
  const wrongs = [
    (c) => c.bytes(Buffer.from("HTTP/1.1 200 OK\r\n\r\n")),
    (c) => c.frame({ flags: HEARTBEAT, seq: 1n, payload: new Uint8Array(4097) }),
    (c) => c.frame({ seq: 5n, path: "C", method: "m" }),
    (c) => c.frame({ flags: HEARTBEAT | RESPONSE, seq: 1n, payload: new Uint8Array(9 << 20) }),
    (c) => c.push(1n << 61n, 1),
  ];
  for (const [at, wrong] of wrongs.entries()) {
    wrong(await server.connection(at + 1));
    await connected(states, at + 2);
  }
  // What only costs itself.
  const last = await server.connection(wrongs.length + 1);
  last.frame({ flags: RESPONSE, seq: 12345n });
  last.control("Cancel", { "_bw.seq": "x".repeat(100), "_bw.id": "y".repeat(100) });
  last.control("Gap", { "_bw.missed": "-5" });
  last.control("Gap", { "_bw.missed": "a lot" });
  last.control("Tomorrow", {});
  last.frame({ flags: ONEWAY | 0x08, type: 3, seq: PUSH_BIT, path: "T", method: "push", payload: new Uint8Array(5) });
  last.frame({ flags: ONEWAY, type: 3, seq: PUSH_BIT, path: "_bothways", method: "Presence", payload: codec.encode({ Topic: 7 }) });
  await new Promise(setImmediate);
  assert.equal(last.isClosed, false);
});

test("a server that asks and reads nothing does not fill our memory", async (t) => {
  const server = new FakeServer();
  const { bw } = pair(t, { sendBytesMax: 100_000 }, server);
  await bw.connect();
  const connection = await server.connection(1);
  server.stalls = true;
  for (let n = 0; n < 1000 && !connection.isClosed; n++) {
    connection.frame({ flags: HEARTBEAT, seq: BigInt(n), payload: new Uint8Array(4000) });
    await Promise.resolve();
  }
  assert.equal(connection.isClosed, true);
  assert.ok(connection.buffered <= 100_000);
});

test("a server that takes nothing is no reason to throw anywhere", async (t) => {
  const uncaught = new Inbox();
  for (const name of ["uncaughtException", "unhandledRejection"]) process.on(name, uncaught.put);
  t.after(() => ["uncaughtException", "unhandledRejection"].forEach((name) => process.off(name, uncaught.put)));

  const tiny = new FakeServer();
  const { welcome } = tiny;
  tiny.welcome = (connection, hello) => connection.answerHello(hello, { "_bw.sid": "s", "_bw.key": "k", "_bw.off": "0", "_bw.max": "60" });
  const { bw, states } = pair(t, { heartbeat: 20, heartbeatTimeout: 20 }, tiny);
  bw.handle("C", { m: () => "x".repeat(100) });
  bw.onPush("T", "push", () => {});
  await bw.connect();
  const first = await tiny.connection(1);
  const call = bw.call("P", "m", null, { timeout: 10 }).catch((error) => error.code);
  assert.match(await call, /timeout|too_large/);
  first.push(1, 1);
  tiny.welcome = welcome;
  await connected(states, 2);
  const second = await tiny.connection(2);
  tiny.welcome = (connection, hello) => connection.answerHello(hello, { "_bw.max": "60" });
  second.cut();
  await connected(states, 3);
  (await tiny.connection(3)).call(1, "m", 0);
  await connected(states, 4);

  const full = new FakeServer();
  const stalled = pair(t, { sendBytesMax: 2000 }, full);
  await stalled.bw.connect();
  full.stalls = true;
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  const calls = Array.from({ length: 50 }, () => stalled.bw.call("P", "m", null, { signal: controller.signal, timeout: 5000 }).catch(() => {}));
  controller.abort();
  await Promise.all(calls);
  const names = "n".repeat(70_000);
  const loud = pair(t);
  loud.bw.onPush("T", names, () => {});
  loud.bw.subscribe(names, () => {});
  const wordy = pair(t, { token: names });
  await assert.rejects(wordy.bw.connect(), { code: "too_large" });
  await new Promise(setImmediate);
  assert.deepEqual(uncaught.values, []);
});

test("pushes that nobody takes have bounds", async (t) => {
  const { bw, server, pushes, states } = pair(t, { queueMessagesMax: 10 });
  let release;
  const held = new Promise((done) => (release = done));
  bw.onPush("T", "push", async (value, message) => {
    pushes.put([value, message.dropped]);
    await held;
  });
  await bw.connect();
  const first = await server.connection(1);
  for (let n = 0; n < 30; n++) first.push(0, n);
  for (let n = 1; n <= 10; n++) first.push(n, `t${n}`);
  assert.equal(first.isClosed, false);
  first.push(11, "t11");
  assert.equal(first.isClosed, true, "a resume brings it");
  release();
  await connected(states, 2);
  const second = await server.connection(2);
  for (let n = 11; n <= 12; n++) second.push(n, `t${n}`);
  await acked(second, "12,12");
  const tracked = pushes.values.map(([value]) => value).filter((value) => typeof value == "string");
  assert.deepEqual(tracked, Array.from({ length: 12 }, (_, n) => `t${n + 1}`));
  assert.equal(pushes.values.reduce((sum, [, dropped]) => sum + dropped, 0), 29);
});

test("a frame that is larger than the server was told ends the connection, and says why", async (t) => {
  const { bw, server, states } = pair(t, { frameBytesMax: 10_000 });
  await bw.connect();
  const connection = await server.connection(1);
  assert.equal(connection.frames.values[0].meta_["_bw.max"], "10000");
  const call = bw.call("P", "m");
  connection.reply(await connection.next("m"), new Uint8Array(20_000));
  await assert.rejects(call, { code: "lost", maybeExecuted: true, message: /a frame of 20\d+ bytes, at most 10000/ });
  await connected(states, 2);
});

test("a payload that is packed is refused: nobody asked for it", async (t) => {
  const { bw, server } = pair(t);
  bw.onPush("T", "push", () => {});
  bw.handle("C", { m: () => 1 });
  await bw.connect();
  const connection = await server.connection(1);
  const call = bw.call("P", "m");
  connection.reply(await connection.next("m"), "packed", {}, 0x04);
  await assert.rejects(call, { code: "decode", maybeExecuted: true });
  connection.push(1, "packed", { flags: ONEWAY | 0x04 });
  const ack = await acked(connection, "1,1");
  assert.equal(ack.meta_["_bw.nack"], "1-1:bad_arguments");
});

test("many failures are all told, and a Hello says what it can", async (t) => {
  const { bw, server } = pair(t);
  bw.onPush("T", "push", (value) => {
    if (value % 2) throw new Error("odd");
  });
  await bw.connect();
  const first = await server.connection(1);
  for (let n = 1; n <= 400; n++) first.push(n, n);
  await acked(first, "400,400");
  const told = first.frames.values.map(({ meta_ }) => meta_["_bw.nack"]).filter(Boolean);
  const want = Array.from({ length: 200 }, (_, n) => `${2 * n + 1}-${2 * n + 1}:error`);
  assert.deepEqual(told.join().split(","), want);
  assert.ok(told.every((text) => text.length < 1024));
  first.cut();
  const second = await server.connection(2);
  await second.frames.count(1, "a Hello");
  const nack = second.frames.values[0].meta_["_bw.nack"];
  assert.deepEqual(nack.split(","), ["1-369:unknown", ...want.slice(-15)]);
});

test("a listener or a handler that throws hurts nobody else", async (t) => {
  const { bw, errors, states } = pair(t);
  bw.on("state", () => {
    throw new Error("mine");
  });
  const later = new Inbox();
  bw.on("state", later.put);
  await bw.connect();
  assert.equal(later.values.length, states.values.length);
  assert.match(errors.values[0].where, /"state"/);
});

test("close() acknowledges, leaves, and ends what runs", async (t) => {
  const { bw, server } = pair(t);
  bw.onPush("T", "push", () => {});
  let aborted;
  bw.handle("C", { waits: (_, { signal }) => new Promise(() => signal.addEventListener("abort", () => (aborted = true))) });
  await bw.connect();
  const connection = await server.connection(1);
  connection.push(1, 1);
  connection.call(1, "waits", 0);
  const call = bw.call("P", "m");
  await connection.next("m");
  await new Promise(setImmediate);
  bw.close();
  await assert.rejects(call, { code: "lost" });
  const leave = await connection.next("Leave");
  assert.equal(leave.meta_["_bw.ack"], "1,1");
  assert.equal(connection.isClosed, true);
  assert.equal(aborted, true);
  assert.deepEqual([bw.state.name, bw.state.code], ["closed", "closed"]);
  bw.close();
});

/** A storage of a page. */
const storage = () => {
  const values = new Map();
  return { values, getItem: (key) => values.get(key) ?? null, setItem: (key, value) => values.set(key, value), removeItem: (key) => values.delete(key) };
};

test("a stored session goes on after a reload", async (t) => {
  const server = new FakeServer();
  const kept = storage();
  const page = () => {
    const all = pair(t, {}, server);
    keepSession(all.bw, kept);
    return all;
  };
  const before = page();
  before.bw.onPush("T", "push", (value) => {
    if (value === 1) throw new Error("no");
  });
  await before.bw.connect();
  const first = await server.connection(1);
  first.push(1, 1);
  first.push(2, 2);
  await acked(first, "2,2");
  first.isClosed = true;

  const after = page();
  after.bw.onPush("T", "push", after.pushes.put);
  await after.bw.connect();
  assert.equal((await connected(after.states)).resumed, true);
  const second = await server.connection(2);
  const hello = second.frames.values[0].meta_;
  assert.deepEqual(["sid", "off", "rcv", "try", "nack"].map((name) => hello[`_bw.${name}`]), ["s1", "2", "2", "1", "1-1:error"]);
  second.push(3, 3);
  await acked(second, "3,3");
  after.bw.close();
  assert.equal(kept.values.size, 0, "a session that is left is not kept");

  for (const nonsense of ["{", "7", '{"sid":5}', '{"sid":"s","key":"k","off":"x","try":"y","fails":7}']) {
    kept.values.set("bothways:fake", nonsense);
    const { bw } = pair(t);
    keepSession(bw, kept);
    await bw.connect();
    bw.close();
  }
});

test("of two pages that have one storage only the later one keeps its session there", async (t) => {
  const server = new FakeServer();
  const kept = storage();
  const page = () => {
    const all = pair(t, {}, server);
    keepSession(all.bw, kept, "k");
    all.bw.onPush("T", "push", all.pushes.put);
    return all;
  };
  const before = page();
  await before.bw.connect();
  const first = await server.connection(1);
  first.push(1, 1);
  await acked(first, "1,1");

  // The next page reads the storage as late as it can: what the first one still acknowledges counts.
  let give;
  const after = pair(t, { token: () => new Promise((done) => (give = done)) }, server);
  keepSession(after.bw, kept, "k");
  const connecting = after.bw.connect();
  first.push(2, 2);
  await acked(first, "2,2");
  give("t");
  await connecting;
  assert.equal(after.bw.state.resumed, true);
  const second = await server.connection(2);
  assert.equal(second.frames.values[0].meta_["_bw.off"], "2");

  // The first one hears of it, leaves the storage alone, and comes back as another, not at once.
  const { values: [text] } = { values: [...kept.values.values()] };
  first.control("Goodbye", { "_bw.code": "moved" });
  assert.deepEqual([before.bw.state.name, before.sessions.values], ["reconnecting", [{ lost: "moved" }]]);
  assert.ok(before.bw.state.in >= 10_000, `${before.bw.state.in} ms`);
  before.bw.close();
  assert.deepEqual([...kept.values.values()], [text]);
  second.push(3, 3);
  await acked(second, "3,3");
  assert.match(kept.values.get("k"), /"off":"3"/);
});

test("a way to connect that fails at once is tried again", async (t) => {
  const server = new FakeServer();
  let tries = 0;
  const dial = (address, events) => {
    if (++tries > 2) return server.dial(address, events);
    events.closed("at once");
    return { send() {}, close() {}, buffered: 0 };
  };
  const { bw } = pair(t, { dial, reconnect: "always" }, server);
  await bw.connect();
  assert.equal(tries, 3);
  const wrong = pair(t, { dial: () => { throw new TypeError("no address"); }, reconnect: "always" });
  await assert.rejects(wrong.bw.connect(), { code: "not_connected", message: "no address" });
});

test("a process ends when its client is closed", async () => {
  const script = `
    import { FakeServer } from "./test/fake.mjs";
    import { Bothways, everything } from "./dist/index.js";
    const server = new FakeServer();
    const bw = everything(new Bothways("fake", { dial: server.dial }));
    await bw.connect();
    const [connection] = server.connections.values;
    const call = bw.call("P", "m").catch(() => {});
    await connection.next("m");
    connection.control("Goodbye", { "_bw.code": "shutting_down" });
    bw.subscribe("news.a", () => {});
    bw.close();
    await call;`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], { cwd: `${root}js`, stdio: "inherit" });
  const [code] = await within(once(child, "exit"), "the process ends");
  assert.equal(code, 0);
});
