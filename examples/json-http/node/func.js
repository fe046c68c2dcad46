// Format `json-http`: a line of JSON, an empty line and the body on STDIN; the same on STDOUT in answer; hot.
// In: request_url, params, method, headers: {Name: [values]}, call_id, deadline, and body_length, or "chunked": true.
// Out: body_length, or "chunked": true; and if you like status_code, content_type, headers.
// The next head follows the body's last byte. Chunks are those of HTTP/1.1: a size in hexadecimal, CR LF, data, CR LF; the last has
// size 0. STDIN ends when no call will come. STDOUT carries answers and nothing else: log with console.error.
'use strict';

// Lines and bytes of STDIN, one after the other.
const input = process.stdin.iterator();
let held = Buffer.alloc(0);

async function line() {
  let end;
  while ((end = held.indexOf('\n')) < 0) {
    const { value, done } = await input.next();
    if (done) return null;
    held = Buffer.concat([held, value]);
  }
  const text = held.toString('utf8', 0, end);
  held = held.subarray(end + 1);
  return text;
}

async function bytes(length) {
  const pieces = [];
  while (held.length < length) {
    pieces.push(held);
    length -= held.length;
    held = (await input.next()).value; // nobody ends STDIN within a call
  }
  pieces.push(held.subarray(0, length));
  held = held.subarray(length);
  return Buffer.concat(pieces);
}

// It must be read to its end, since the next call follows at once.
async function body(head) {
  if (!head.chunked) return bytes(head.body_length);
  const pieces = [];
  for (let size; (size = parseInt(await line(), 16)) > 0; await line()) pieces.push(await bytes(size));
  await line(); // the empty line after the last
  return Buffer.concat(pieces);
}

async function main() {
  for (let text; (text = await line()) !== null; ) {
    const head = JSON.parse(text);
    await line(); // the empty line
    const content = await body(head);
    const name = head.params.name || content.toString().trim() || 'world';
    console.error(`greeting ${name.slice(0, 80)}`);
    const answer = Buffer.from(`Hello, ${name}, from Node over JSON and HTTP!\n`);
    process.stdout.write(`${JSON.stringify({ content_type: 'text/plain; charset=utf-8', body_length: answer.length })}\n\n`);
    process.stdout.write(answer);
  }
}

main();
