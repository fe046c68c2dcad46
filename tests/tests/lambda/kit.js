// Handlers for AWS's runtime client for Node.
let calls = 0;

exports.handler = async (event, context) => {
  calls += 1;
  if (event.do === 'throw') throw new TypeError('thrown on purpose');
  if (event.do === 'exit') process.exit(event.status);
  if (event.do === 'log') {
    console.log('printed', context.awsRequestId);
    console.error('complained', context.awsRequestId);
  }
  return { calls, request_id: context.awsRequestId, remaining: context.getRemainingTimeInMillis(), custom: context.clientContext?.custom };
};

// Each piece is made when the one before it was read: the caller says so through the named pipe `event.gate`.
exports.stream = awslambda.streamifyResponse(async (event, stream) => {
  const gate = event.gate ? require('node:fs').openSync(event.gate, 'r') : null;
  for (let piece = 0; piece < event.pieces; piece += 1) {
    if (gate !== null && piece > 0) require('node:fs').readSync(gate, Buffer.alloc(1));
    await new Promise((done) => stream.write(`${'x'.repeat(event.size ?? 0)}piece ${piece};`, done));
    await new Promise((done) => setImmediate(done));
  }
  if (event.fail) throw new RangeError('thrown on the way');
  stream.end();
});

// A page, by the prelude of a function URL.
exports.page = awslambda.streamifyResponse(async (event, stream) => {
  const page = awslambda.HttpResponseStream.from(stream, {
    statusCode: 203,
    headers: { 'x-kit': 'node', 'content-type': 'text/plain' },
    cookies: ['a=1', 'b=2'],
  });
  page.write(`${event.requestContext.http.method} ${event.rawPath}`);
  page.end();
});
