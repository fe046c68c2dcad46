// Sends events to a balancer's door with the CloudEvents kit of npm, in each mode, and says of each answer what the kit reads in it.
//
//     event_client.js http://HOST:PORT APP/FN...
const http = require('node:http');
const { CloudEvent, HTTP } = require('cloudevents');

const SUBJECT = 's é 100% "q"';
const [base, ...functions] = process.argv.slice(2);

const event = (number) => new CloudEvent({
  id: `js-${number}`, source: '/kit', type: 'kit.sent', subject: SUBJECT, myext: 'x', time: '2026-01-02T03:04:05Z', data: { number },
});

// The event that an answer is, as the kit reads it.
function read(headers, body) {
  const structured = (headers['content-type'] ?? '').startsWith('application/cloudevents+json');
  if (!structured && headers['ce-specversion'] === undefined) return null;
  const found = HTTP.toEvent({ headers, body });
  found.validate();
  return { id: found.id, type: found.type, data: found.data };
}

const send = (fn, mode, headers, body) => new Promise((resolve, reject) => {
  const request = http.request(`${base}/ce/${fn}`, { method: 'POST', headers, timeout: 60000 }, (answer) => {
    const parts = [];
    answer.on('data', (part) => parts.push(part));
    answer.on('end', () => {
      const text = Buffer.concat(parts).toString();
      console.log(JSON.stringify({ function: fn, mode, status: answer.statusCode, body: text, event: read(answer.headers, text) }));
      resolve();
    });
  });
  request.on('error', reject);
  request.end(body);
});

async function main() {
  for (const fn of functions) {
    // The kit escapes nothing: what a header cannot hold goes out as Latin-1.
    const binary = HTTP.binary(event(1));
    await send(fn, 'binary', binary.headers, binary.body);
    const structured = HTTP.structured(event(1));
    await send(fn, 'structured', structured.headers, structured.body);
    const batch = JSON.stringify([event(1), event(2)]);
    await send(fn, 'batch', { 'content-type': 'application/cloudevents-batch+json' }, batch);
  }
  // What the kit would take, and the standard does not.
  const { headers, body } = HTTP.binary(event(1));
  headers['ce-specversion'] = '9.9';
  HTTP.toEvent({ headers, body });
  await send(functions[0], 'another version', headers, body);
}

main();
