// What the tests look at from inside, under its own names.
export { json, raw, gunzip } from "../src/codec.js";
export { Conn } from "../src/conn.js";
export * from "../src/frame.js";
export { Ext, msgpack } from "../src/msgpack.js";
export { Session, parseOffset } from "../src/session.js";
export { covers } from "../src/topics.js";
export { urlOf } from "../src/wire.js";
