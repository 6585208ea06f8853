// What the tests look at from inside, under its own names.
import { HEARTBEAT, ONEWAY, RESPONSE, type Frame } from "../src/frame.js";

export { json, raw } from "../src/codec.js";
export { pascal } from "../src/names.js";
export * from "../src/frame.js";
export { Ext, msgpack } from "../src/msgpack.js";
export { Session, parseOffset } from "../src/session.js";
export { covers } from "../src/topics.js";
export { urlOf } from "../src/wire.js";

export const isResponse = (frame: Frame) => (frame.flags_ & RESPONSE) != 0;
export const isHeartbeat = (frame: Frame) => (frame.flags_ & HEARTBEAT) != 0;
export const isOneway = (frame: Frame) => (frame.flags_ & ONEWAY) != 0;
