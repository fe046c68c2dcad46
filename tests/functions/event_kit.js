// A function of the format cloudevent, version 1.0, with the CloudEvents kit of npm: the kit reads every call and writes every answer.
const { CloudEvent, HTTP } = require('cloudevents');
const lines = require('node:readline').createInterface({ input: process.stdin });

let calls = 0;

lines.on('line', (body) => {
  calls += 1;
  const event = HTTP.toEvent({ headers: { 'content-type': 'application/cloudevents+json' }, body });
  event.validate();
  const bytes = event.data_base64 !== undefined;
  const told = {
    calls,
    id: event.id,
    source: event.source,
    type: event.type,
    kind: bytes ? 'bytes' : typeof event.data === 'string' ? 'str' : 'dict',
    data: bytes ? [...Buffer.from(event.data_base64, 'base64')] : event.data,
  };
  const answer = new CloudEvent({
    id: `answer-${calls}`, source: '/function', type: 'kit.answer', datacontenttype: 'application/json', data: told,
  });
  console.log(HTTP.structured(answer).body);
});
