// The client in Node.js against a real Bothways server over tcp.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Bothways } from "../dist/node.js";
import { bothwaysProgram, Inbox, missing, rustServer, start } from "./helpers.mjs";

/** A server, and a client of it as this user, each ended with the test. */
async function pair(t, { args = [], ...options } = {}) {
  const path = rustServer();
  if (!path) return void missing(t, "web-server");
  const server = start(t, path, args);
  const [address] = await server.addresses();
  const bw = new Bothways(address, { token: "ann", backoffBase: 5, ...options });
  const states = new Inbox();
  bw.on("state", states.put);
  t.after(() => bw.close());
  return { server, bw, states, address };
}

const news = (from, count) => ({ do: "push", to: { topic: "news.a" }, path: "News", method: "say", from, count });
const mail = (from, count, more) => ({ do: "push", to: { user: "ann" }, path: "Mail", method: "new", from, count, ...more });

test("calls, errors, metadata and calls back", async (t) => {
  const { bw, server } = (await pair(t)) ?? {};
  if (!bw) return;
  bw.handle("Chat", {
    last: async ({ n }, call) => ({ n: n + 1, in: call.deadline > Date.now() }),
    fails: () => Promise.reject(new Error("no")),
  });
  await bw.connect();
  assert.deepEqual(await bw.call("Arith", "Mul", { A: 6, B: 7 }), { C: 42 });
  await assert.rejects(bw.call("Fail", "Fail", "boom"), { code: "remote", message: "boom" });
  await assert.rejects(bw.call("Nobody", "is"), { code: "not_found", maybeExecuted: false });
  assert.equal((await bw.request("Meta", "Echo", null, { meta: { k: "seen" } })).meta.got, "seen");
  await assert.rejects(bw.call("Wait", "Millis", 5000, { timeout: 30 }), { code: "timeout" });
  const value = { text: "Grüße 世界", bytes: new Uint8Array([0, 255]), list: [1, -1, 2 ** 40], none: null };
  assert.deepEqual(await bw.call("Echo", "Echo", { ...value, bytes: undefined }), { text: value.text, list: value.list, none: null });

  assert.deepEqual(await server.ask({ do: "call", user: "ann", path: "Chat", method: "last", args: { n: 1 }, millis: 5000 }), { id: 1, ok: { n: 2, in: true } });
  assert.match((await server.ask({ do: "call", user: "ann", path: "Chat", method: "fails", args: {}, millis: 5000 })).error, /no/);
  assert.match((await server.ask({ do: "call", user: "ann", path: "Chat", method: "other", args: {}, millis: 5000 })).error, /NotSupported|not_found|NotFound/i);
});

test("a thousand calls at once", async (t) => {
  const { bw } = (await pair(t)) ?? {};
  if (!bw) return;
  await bw.connect();
  const replies = await Promise.all(Array.from({ length: 1000 }, (_, n) => bw.call("Arith", "Mul", { A: n, B: 3 })));
  replies.forEach(({ C }, n) => assert.equal(C, 3 * n));
});

test("pushes come once and in order over many cuts, and each receipt says handled", async (t) => {
  const { bw, server, states } = (await pair(t, { backoffMax: 100 })) ?? {};
  if (!bw) return;
  const got = [];
  bw.onPush("Mail", "new", async (value) => {
    got.push(value);
    if (value % 50 === 0) await new Promise(setImmediate);
  });
  await bw.connect();
  const cuts = (async () => {
    for (let cut = 1; cut <= 20; cut++) {
      await states.find(() => states.values.filter(({ name }) => name === "connected").length >= cut, "it is connected");
      await server.ask({ do: "cut" });
    }
  })();
  const { ends } = await server.ask(mail(1, 2000));
  await cuts;
  assert.deepEqual(ends, { Handled: 2000 });
  assert.deepEqual(got, Array.from({ length: 2000 }, (_, n) => n + 1));
  assert.ok(states.values.filter(({ resumed }) => resumed).length >= 19);
});

test("what is pushed while the client is away waits for it", async (t) => {
  const { bw, server, states } = (await pair(t, { args: ["--log", "100"], backoffBase: 300, backoffMax: 300 })) ?? {};
  if (!bw) return;
  const got = new Inbox();
  bw.onPush("Mail", "new", got.put);
  await bw.connect();
  await server.ask({ do: "cut" });
  await states.find(({ name }) => name === "reconnecting", "it is away");
  const { ends } = await server.ask(mail(1, 50));
  assert.deepEqual([ends, got.values.length], [{ Handled: 50 }, 50]);
});

test("each receipt says how its push ended", async (t) => {
  const { bw, server } = (await pair(t, { onError() {} })) ?? {};
  if (!bw) return;
  bw.onPush("Mail", "new", (value) => {
    if (value === 2) throw new Error("no");
  });
  await bw.connect();
  assert.deepEqual((await server.ask(mail(1, 3))).ends, { Handled: 2, "Failed(Error)": 1 });
  assert.deepEqual((await server.ask(mail(1, 1, { method: "other" }))).ends, { "Failed(NoHandler)": 1 });
  assert.deepEqual((await server.ask(mail(1, 1, { json: true }))).ends, { Handled: 1 });
  assert.deepEqual((await server.ask(mail(1, 1, { key: "k1" }))).ends, { Handled: 1 });
});

test("the newest value of a key arrives", async (t) => {
  const { bw, server } = (await pair(t)) ?? {};
  if (!bw) return;
  const got = [];
  bw.onPush("Mail", "new", async (value) => {
    got.push(value);
    await new Promise((done) => setTimeout(done, 20));
  });
  await bw.connect();
  const { ends } = await server.ask(mail(1, 100, { latest: "price" }));
  assert.equal(got.at(-1), 100);
  assert.equal((ends.Handled ?? 0) + (ends.Superseded ?? 0), 100);
  assert.ok(ends.Superseded > 50, JSON.stringify(ends));
});

test("a topic with history is recovered over a lost session", async (t) => {
  const { bw, server, states } = (await pair(t)) ?? {};
  if (!bw) return;
  const [got, sessions] = [new Inbox(), new Inbox()];
  bw.on("session", sessions.put);
  const sub = bw.subscribe("news.a", (value, message) => got.put([value, message.topic, message.position.offset]));
  const all = bw.subscribe("news.>", () => {});
  await bw.connect();
  assert.deepEqual(await sub.ready, { recovered: true });
  await all.ready;
  await server.ask(news(1, 3));
  assert.deepEqual(got.values.at(-1), [3, "news.a", 3n]);

  await server.ask({ do: "end", user: "ann" });
  await server.ask(news(4, 5));
  await got.count(8, "what was missed", 10_000);
  await states.find(() => states.values.filter(({ name }) => name === "connected").length >= 2, "it is back");
  assert.deepEqual(sessions.values, [{ lost: "ended" }]);
  await server.ask(news(9, 1));
  assert.deepEqual(got.values.map(([value]) => value), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.equal(sub.position.offset, 9n);

  await sub.unsubscribe();
  await all.unsubscribe();
  assert.deepEqual((await server.ask(news(10, 1))).ends, { Nobody: 1 });
  const late = bw.subscribe("news.a", got.put, { from: { epoch: sub.position.epoch, offset: 7n } });
  assert.deepEqual(await late.ready, { recovered: true });
  await got.count(12, "the last three");
});

test("a topic that cannot be recovered says so", async (t) => {
  const { bw, server } = (await pair(t)) ?? {};
  if (!bw) return;
  const gaps = new Inbox();
  await bw.connect();
  const old = bw.subscribe("news.b", () => {}, { from: { epoch: 12345n, offset: 2n } });
  old.on("gap", gaps.put);
  assert.deepEqual(await old.ready, { recovered: false });
  assert.deepEqual(gaps.values, [{ topic: "news.b" }]);
  const live = bw.subscribe("live.a", () => {});
  live.on("gap", gaps.put);
  await live.ready;
  await server.ask({ do: "end", user: "ann" });
  await gaps.find(({ topic }) => topic === "live.a", "what was published meanwhile is lost");
  const refused = bw.subscribe("secret", () => {});
  const errors = new Inbox();
  refused.on("error", errors.put);
  await assert.rejects(refused.ready, (error) => error.name === "BothwaysError");
  assert.equal(errors.values[0].final, true);
});

test("presence shows who is there", async (t) => {
  const { bw, server, address } = (await pair(t)) ?? {};
  if (!bw) return;
  const shown = new Inbox();
  const room = bw.subscribe("room.1", () => {}, { presence: (members) => shown.put(members.map(({ user }) => user).sort().join()) });
  await bw.connect();
  await shown.find((users) => users === "ann", "ann is there");
  const bob = new Bothways(address, { token: "bob" });
  t.after(() => bob.close());
  await bob.connect();
  await bob.subscribe("room.1", () => {}).ready;
  await shown.find((users) => users === "ann,bob", "bob is there");
  assert.deepEqual(room.members.map(({ user, session, status }) => [user, session, status]).sort(), [["ann", "", "online"], ["bob", "", "online"]]);
  bob.close();
  await shown.find((users, at) => users === "ann" && at > 0 || shown.values.at(-1) === "ann", "bob has left");
  await server.ask({ do: "cut" });
});

test("a token that has run out is renewed, and the call repeated", async (t) => {
  let number = 0;
  const { bw, server, states } = (await pair(t, { token: () => `ann/${++number}` })) ?? {};
  if (!bw) return;
  await bw.connect();
  await server.ask({ do: "expire", below: 2 });
  assert.deepEqual(await bw.call("Arith", "Mul", { A: 2, B: 3 }), { C: 6 });
  assert.equal(number, 2);
  assert.equal(states.values.at(-1).resumed, true);
  await server.ask({ do: "expire", below: 1000 });
  await assert.rejects(bw.call("Arith", "Mul", { A: 2, B: 3 }), { code: "closed" });
  assert.deepEqual([number, bw.state.code], [4, "unauthenticated"]);
});

test("who is kicked stays away, and who is told goodbye comes back", async (t) => {
  const { bw, server } = (await pair(t)) ?? {};
  if (!bw) return;
  await bw.connect();
  const slow = assert.rejects(bw.call("Wait", "Millis", 5000), { name: "BothwaysError" });
  const closed = new Promise((done) => bw.on("state", ({ name, code }) => name === "closed" && done(code)));
  await server.ask({ do: "kick", user: "ann" });
  assert.equal(await closed, "kicked");
  await slow;
  await bw.connect();
  const goodbye = new Promise((done) => bw.on("state", (state) => state.name === "reconnecting" && done(state)));
  const answered = bw.call("Wait", "Millis", 200);
  await new Promise((done) => setTimeout(done, 50));
  void server.ask({ do: "shutdown", millis: 5000 }).catch(() => {});
  assert.match((await goodbye).why.message, /shut|goodbye|stop/i);
  assert.equal(await answered, 200, "what runs is answered");
});

test("the program of this repository", async (t) => {
  const path = bothwaysProgram();
  if (!path) return missing(t, "bothways program");
  const server = start(t, path, ["serve", "tcp@127.0.0.1:0", "--push-every", "100ms"]);
  const line = await server.lines.find((line) => line.startsWith("listening on "), "it listens");
  const bw = new Bothways(line.slice("listening on ".length));
  t.after(() => bw.close());
  const got = new Inbox();
  bw.onPush("*", "*", (_, message) => got.put(message.text()));
  await bw.connect();
  assert.deepEqual(await bw.call("Arith", "Mul", { A: 6, B: 7 }), { C: 42 });
  assert.equal(await got.find(() => true, "a push"), "abcde");
});
