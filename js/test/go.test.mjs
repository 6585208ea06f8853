// The client against a real Go rpcx server.
import assert from "node:assert/strict";
import { test } from "node:test";
import WebSocket from "ws";
import { Bothways, json, raw } from "../dist/node.js";
import { goServer, Inbox, missing, start } from "./helpers.mjs";

for (const network of ["tcp", "ws"]) {
  test(`Go over ${network}`, async (t) => {
    const path = goServer();
    if (!path) return missing(t, "go");
    const server = start(t, path, ["-addr", `${network}@127.0.0.1:0`, "-auth", "tok"]);
    const [address] = await server.addresses();
    // Go refuses who names no origin.
    class FromHere extends WebSocket {
      constructor(url) {
        super(url, { origin: url.replace("ws", "http") });
      }
    }
    const bw = new Bothways(address, { token: "tok", WebSocket: FromHere });
    t.after(() => bw.close());
    const pushes = new Inbox();
    bw.onPush("*", "*", (value, message) => pushes.put([message.path, message.method, message.text()]));
    await bw.connect();
    assert.equal(bw.sessionId, "");

    for (const codec of [undefined, json()]) {
      assert.deepEqual(await bw.call("Arith", "Mul", { A: 6, B: 7 }, { codec }), { C: 42 });
      await assert.rejects(bw.call("Arith", "Err", { A: 0, B: 0 }, { codec }), { code: "remote", message: "boom" });
      const sample = await bw.call("Codec", "Sample", { A: 0, B: 0 }, { codec });
      assert.equal(sample.String, "Grüße <&> 世界");
      // Every field comes back as Go has it, 64 bits of MessagePack among them.
      if (!codec) assert.equal((await bw.call("Codec", "Diff", sample)).S, "");
    }
    const times = await bw.call("Codec", "SampleTimes", { A: 0, B: 0 });
    assert.deepEqual(times.Seconds, new Date(1e12));
    await assert.rejects(bw.call("Nobody", "is"), { code: "remote" });
    const bytes = new Uint8Array([1, 2, 3]);
    assert.deepEqual(await bw.call("Raw", "Echo", bytes, { codec: raw() }), bytes);
    const big = Array.from({ length: 500 }, (_, n) => bw.call("Arith", "Echo", { A: n, B: 0 }));
    assert.deepEqual((await Promise.all(big)).map(({ C }) => C), Array.from({ length: 500 }, (_, n) => n));

    const wrong = new Bothways(address, { token: "other", WebSocket: FromHere });
    t.after(() => wrong.close());
    await wrong.connect();
    await assert.rejects(wrong.call("Arith", "Mul", { A: 6, B: 7 }), /invalid token|lost/);
  });
}
