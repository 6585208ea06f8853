// What an application in TypeScript sees: compiled, and never run.
import { Bothways, BothwaysError, everything, msgpack, raw, type Message, type Options, type State } from "bothways";
import { Bothways as OfJson, followPage, handle, json, keepSession, pascal, subscribe } from "bothways/json";
import { Bothways as OfNode } from "bothways/node";

const options: Options = { token: async () => "t", codec: msgpack({ int64: "bigint" }) };
const bw: Bothways = everything(new Bothways("wss://example.org/_rpcx_", options));
const off: () => void = bw.on("state", (state: State) => state.name == "reconnecting" && state.in.toFixed(1));
bw.onPush("Mail", "New", async (value: { subject: string }, message: Message) => [value.subject, message.text()]);
bw.handle("Chat", { last: (args: number, call) => call.signal.aborted && args });
const product: { C: number } = await bw.call<{ C: number }>("Arith", "Mul", { A: 1 }, { timeout: 10, signal: AbortSignal.timeout(1) });
const { value, meta } = await bw.request<string>("P", "m", new Uint8Array(1), { codec: raw(), meta: { k: "v" } });
const sub = bw.subscribe("news.>", () => {}, { from: { epoch: 1n, offset: 2n }, presence: (members) => members[0]?.user });
sub.on("gap", ({ topic }) => topic.length);
const { recovered }: { recovered: boolean } = await sub.ready;
const small = new OfJson("/_rpcx_", { codec: pascal(json()) });
keepSession(small, sessionStorage, "key");
followPage(small);
handle(small, "Chat", { last: (args: number, call) => call.signal.aborted && args });
void subscribe(small, "news.>", (value, message) => [value, message.topic]).unsubscribe();
small.close();
new OfNode("tls@127.0.0.1:1", { tls: { ca: "" } }).close();
try {
  await bw.connect();
} catch (error) {
  if (error instanceof BothwaysError && error.code == "unauthenticated") console.log(error.maybeExecuted, product, value, meta, recovered, off);
}

// @ts-expect-error: there is no such event.
bw.on("nothing", () => {});
// @ts-expect-error: the small client has this as a function.
small.subscribe("news.>", () => {});
// @ts-expect-error: what begins with an underscore's place is nobody's business.
bw.session_.sid_ = 1;
