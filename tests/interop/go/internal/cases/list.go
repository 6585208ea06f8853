package cases

// All lists the cases in the order in which they are run.
func All() []Case {
	return []Case{
		{Name: "msgpack", About: "calls and structs in msgpack", run: runMsgpack},
		{Name: "json", About: "calls and structs in JSON", run: runJSON},
		{Name: "bare-msgpack", About: "values that are no structs, tags and ends of ranges in msgpack", run: runBareMsgpack},
		{Name: "bare-json", About: "the same in JSON, where a float may not be NaN and names may come in any case", run: runBareJSON},
		{
			Name: "narrow", About: "integers that do not fit are errors", run: runNarrow,
			NotGo: "Go cuts them off, or takes the sign for a bit",
		},
		{Name: "protobuf", About: "a call in protobuf", run: runProtobuf},
		{Name: "thrift", About: "a call in thrift", run: runThrift},
		{Name: "raw", About: "bytes in and out without a codec, empty ones too", run: runRaw},
		{Name: "function", About: "functions registered under a path", run: runFunction},
		{Name: "router", About: "low-level handlers", run: runRouter},
		{Name: "metadata", About: "metadata of request and response", run: runMetadata},
		{Name: "errors", About: "errors of handlers, unknown names, unusable payloads; the connection survives each", run: runErrors},
		{
			Name: "panic", About: "a panic becomes an error that gives nothing away", run: runPanic,
			NotGo: "Go sends the arguments and a stack trace to the caller",
		},
		{Name: "oneway", About: "calls without a reply are carried out and never answered", run: runOneway},
		{Name: "heartbeat", About: "heartbeats are echoed, whatever is in them, between calls", run: runHeartbeat},
		{Name: "compression", About: "gzip both ways, and when a reply is compressed", run: runCompression},
		{Name: "timeout", About: "deadlines reach the handler; a call ends at its own", run: runTimeout},
		{Name: "concurrent", About: "N calls at once with replies out of order on one connection", run: runConcurrent},
		{Name: "large", About: "payloads of SIZE bytes both ways", run: runLarge},
		{Name: "push-before-reply", About: "a push sent before the reply is handled before the call returns", run: runPushBeforeReply},
		{Name: "pushes", About: "N pushes of SIZE bytes arrive once each and in order", run: runPushes},
		{Name: "bidirectional", About: "the documentation's example: a call, then pushes into the channel", run: runBidirectional},
		{Name: "malformed", About: "frames after which the server must close the connection, and others must not notice", run: runMalformed},
		{
			Name: "strict", About: "frames with inner lengths that contradict each other close the connection", run: runStrict,
			NotGo: "Go takes such a frame for a shorter message, and reserves as much memory as a header asks for",
		},
		{
			Name: "auth", About: "a wrong token is refused and the connection closed", run: runAuth,
			Alone: "needs a server with -auth, and the same token given to the client",
		},
		{
			Name: "loss", About: "the message that an application gets when the connection is lost", run: runLoss,
			Alone: "waits for the server to go away, unless -kick makes it ask for that",
		},
		{
			Name: "reconnect", About: "a Failtry client finds the server again after a restart", run: runReconnect,
			Alone: "waits for the server to be restarted on the same address",
		},
	}
}
