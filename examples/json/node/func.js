// Format `json`: an object on each line of STDIN, an object on STDOUT in answer to it; hot.
// In: call_id, deadline, content_type, body, protocol: {type, method, request_url, headers: {Name: [values]}}.
// Out: body, content_type, protocol: {status_code, headers}; whatever is missing is empty, the status 200.
// Bodies are text, unless the function file says `format_options: {base64_bodies: true}`, as it does for this one: then a
// request's body is base64, and so is an answer's that says `body_encoding: 'base64'`. STDERR is the log.
'use strict';

const crypto = require('node:crypto');
const readline = require('node:readline');

readline.createInterface({ input: process.stdin, crlfDelay: Infinity }).on('line', (line) => {
  const call = JSON.parse(line);
  const body = Buffer.from(call.body, call.body_encoding ?? 'utf8');
  console.error(`answering ${call.call_id}`);
  const sum = crypto.createHash('sha256').update(body).digest('hex');
  const answer = {
    body: `Hello, ${body.length} bytes of ${call.content_type || 'something'}!\n`,
    content_type: 'text/plain',
    protocol: { status_code: 200, headers: { 'X-Sha256': [sum] } },
  };
  process.stdout.write(`${JSON.stringify(answer)}\n`);
});
