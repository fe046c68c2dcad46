// Format `cloudevent` with `cloudevents: "1.0"`: an event in JSON on each line of STDIN, an event on STDOUT in answer; hot.
// A request that is a CloudEvent arrives as that event; any other is wrapped into one of the type `stoker.call`.
// Besides its attributes: fncallid, fndeadline, fnmethod, fnrequesturl, and fnheaders, a string that holds {"Name": ["value"]}.
// The body is `data` (JSON; a string for text) or `data_base64` (bytes). An answer needs specversion, id, source and type.
// Who sent an event gets the answer's event; who did not gets its data, with fnstatuscode and fnheaders. STDERR is the log.
'use strict';

const readline = require('node:readline');

function dataOf(event) {
  return event.data_base64 === undefined ? event.data : Buffer.from(event.data_base64, 'base64').toString();
}

readline.createInterface({ input: process.stdin, crlfDelay: Infinity }).on('line', (line) => {
  const event = JSON.parse(line);
  const data = dataOf(event);
  const name = (data && typeof data === 'object' ? data.name : data) || 'world';
  console.error(`${event.type} from ${event.source}`);
  const answer = {
    specversion: '1.0',
    id: event.id,
    source: '/examples/greeter',
    type: 'example.greeting',
    datacontenttype: 'text/plain',
    data: `Hello, ${name}, from Node by event!`,
    fnheaders: JSON.stringify({ 'X-Event': [event.id] }),
  };
  process.stdout.write(`${JSON.stringify(answer)}\n`);
});
