// The small client: what it does by itself, and what is added to it.
import assert from "node:assert/strict";
import { test } from "node:test";
import { build } from "esbuild";
import { FakeServer } from "./fake.mjs";
import { Inbox } from "./helpers.mjs";
import { Bothways, handle, keepSession, subscribe } from "../dist/json.js";
import { isResponse, ONEWAY, OTHER_BIT, PUSH_BIT, RESPONSE } from "./built/internals.mjs";

const bytes = (value) => new TextEncoder().encode(JSON.stringify(value));
const valueOf = (frame) => JSON.parse(new TextDecoder().decode(frame.payload_));
const push = (connection, offset, value, meta = {}) =>
  connection.frame({ flags: ONEWAY, type: 1, seq: PUSH_BIT | BigInt(offset), path: "T", method: "push", meta, payload: bytes(value) });
const reply = (connection, frame, value) => connection.frame({ flags: RESPONSE, type: 1, seq: frame.seq_, payload: bytes(value) });
const call = (connection, seq) =>
  connection.frame({ type: 1, seq: PUSH_BIT | OTHER_BIT | BigInt(seq), path: "Chat", method: "last", payload: bytes(1) });

function pair(t, server = new FakeServer()) {
  const states = new Inbox();
  const bw = new Bothways("fake", { dial: server.dial, backoffBase: 1, backoffMax: 20, heartbeat: 0 });
  bw.on("state", states.put);
  t.after(() => bw.close());
  return { bw, server, states };
}

const welcomed = (states, times) =>
  states.find(() => states.values.filter(({ name }) => name === "connected").length >= times, `connected ${times} times`);

const storage = () => {
  const values = new Map();
  return { values, getItem: (key) => values.get(key) ?? null, setItem: (key, value) => values.set(key, value), removeItem: (key) => values.delete(key) };
};

test("alone it calls, takes pushes and resumes, and says no more to the server", async (t) => {
  const { bw, server, states } = pair(t);
  const got = [];
  bw.onPush("T", "push", (value, message) => void got.push([value, message.topic]));
  await bw.connect();
  const first = await server.connection(1);
  const hello = first.frames.values[0].meta_;
  assert.equal(hello["_bw.caps"], "cancel,ping,sessions,outcomes");
  assert.equal(hello["_bw.fns"], "");

  const asked = bw.call("P", "m", { a: 1 });
  const frame = await first.next("m");
  assert.deepEqual([frame.type_, valueOf(frame)], [1, { a: 1 }]);
  reply(first, frame, { b: 2 });
  assert.deepEqual(await asked, { b: 2 });

  // The server may have subscribed it.
  push(first, 1, "one", { "_bw.t": "news.a", "_bw.te": "7", "_bw.to": "3" });
  assert.equal((await first.next("Ack")).meta_["_bw.ack"], "1,1");
  first.control("Cancel", { "_bw.seq": "1", "_bw.id": "x" });
  first.control("Gap", { "_bw.missed": "2" });
  first.cut();
  await welcomed(states, 2);
  assert.equal(bw.state.resumed, true);
  push(await server.connection(2), 2, "two");
  assert.equal((await (await server.connection(2)).next("Ack")).meta_["_bw.ack"], "2,2");
  assert.deepEqual(got, [["one", "news.a"], ["two", undefined]]);

  assert.throws(() => handle(bw, "Chat", { last: () => 1 }), /before connect/);
  call(await server.connection(2), 1);
  await welcomed(states, 3);
  assert.equal((await server.connection(2)).isClosed, true, "calls were not agreed on");
});

test("a bundler leaves out what a page does not import", async () => {
  const bundle = async (names) => {
    const stdin = { contents: `export { ${names} } from "bothways/json"`, resolveDir: "." };
    const { outputFiles } = await build({ stdin, bundle: true, format: "esm", platform: "browser", minify: true, write: false });
    return outputFiles[0].text;
  };
  const [bare, all] = [await bundle("Bothways"), await bundle("Bothways, handle, subscribe, keepSession")];
  for (const word of ['"Roster"', "must be handled before", "bothways:\"+"]) {
    assert.ok(all.includes(word), word);
    assert.ok(!bare.includes(word), word);
  }
  assert.ok(bare.length < 0.8 * all.length, `${bare.length} of ${all.length} bytes`);
});

test("what is added answers calls, subscribes, and outlives the page", async (t) => {
  const server = new FakeServer();
  const kept = storage();
  const got = new Inbox();
  const page = () => {
    const { bw, states } = pair(t, server);
    keepSession(bw, kept, "mine");
    handle(bw, "Chat", { last: (n) => n + 1 });
    return { bw, states, sub: subscribe(bw, "news.a", got.put) };
  };

  const before = page();
  await before.bw.connect();
  const first = await server.connection(1);
  const hello = first.frames.values[0].meta_;
  assert.deepEqual([hello["_bw.caps"], hello["_bw.fns"]], ["cancel,ping,sessions,outcomes,goodbye,calls", "Chat.last"]);
  const asked = await first.next("Subscribe");
  assert.deepEqual(valueOf(asked), { Topic: "news.a", Epoch: 0, Offset: 0, Part: true, Ordered: true });
  reply(first, asked, { Epoch: 7, Offset: 2 });
  await before.sub.ready;
  call(first, 1);
  const answer = await first.frames.find((frame) => isResponse(frame), "an answer");
  assert.equal(valueOf(answer), 2);
  push(first, 1, "one", { "_bw.t": "news.a", "_bw.te": "7", "_bw.to": "3" });
  await first.next("Ack");
  assert.deepEqual(JSON.parse(kept.values.get("mine")).pos, { "news.a": ["7", "3"] });

  // Another page goes on with the session where this one was.
  first.isClosed = true;
  const after = page();
  assert.equal(after.sub.position, undefined);
  await after.bw.connect();
  assert.equal(after.bw.state.resumed, true);
  assert.deepEqual(after.sub.position, { epoch: 7n, offset: 3n });
  const again = await (await server.connection(2)).next("Subscribe");
  assert.deepEqual([valueOf(again).Epoch, valueOf(again).Offset], [7, 3]);
  assert.deepEqual(got.values, ["one"]);
  after.bw.close();
  assert.equal(kept.values.size, 0, "a session that is left is not kept");
});

test("a page that got nothing of a topic leaves its place to the next one", async (t) => {
  const server = new FakeServer();
  const kept = storage();
  const page = async (number) => {
    const { bw } = pair(t, server);
    keepSession(bw, kept);
    const sub = subscribe(bw, "news.a", () => {});
    await bw.connect();
    const connection = await server.connection(number);
    return { sub, connection, asked: await connection.next("Subscribe") };
  };

  // Nothing was published to it yet.
  const first = await page(1);
  assert.equal(valueOf(first.asked).Epoch, 0);
  reply(first.connection, first.asked, { Epoch: 7, Offset: 0 });
  await first.sub.ready;
  assert.deepEqual(first.sub.position, { epoch: 7n, offset: 0n });
  first.connection.isClosed = true;

  // Nor has anything come to the second one when the third begins.
  for (const number of [2, 3]) {
    const { sub, connection, asked } = await page(number);
    assert.deepEqual([valueOf(asked).Epoch, valueOf(asked).Offset], [7, 0]);
    reply(connection, asked, { Recovered: true, Epoch: 7, Offset: 0 });
    await sub.ready;
    connection.isClosed = true;
  }
});
