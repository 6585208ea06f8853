// As `consumer.mts`, in CommonJS.
import bothways = require("bothways");
import ofJson = require("bothways/json");
import ofNode = require("bothways/node");

const bw: bothways.Client = new bothways.Bothways("/_rpcx_");
const failed: ofNode.BothwaysError = new ofNode.BothwaysError("lost", "text");
void new ofJson.Bothways("/_rpcx_").call<number>("P", "m").then((n) => n + 1);
export { bw, failed };
