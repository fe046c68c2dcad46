// What the CloudEvents kit of npm makes of what the codec writes, and writes of its own for the codec to read.
//
//     npm install cloudevents@10.0.0 && node node.mjs check|write GOLDEN_DIRECTORY
import assert from 'node:assert';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createRequire } from 'node:module';

// From where it is run, not from where this file lies.
const { CloudEvent, HTTP } = createRequire(join(process.cwd(), 'x'))('cloudevents');
const [mode, folder] = process.argv.slice(2);

if (mode === 'check') {
  for (const name of readdirSync(folder).filter((n) => /^1\.0-.*\.in$/.test(n)).sort()) {
    const body = readFileSync(join(folder, name), 'utf8');
    const event = HTTP.toEvent({ headers: { 'content-type': 'application/cloudevents+json' }, body });
    event.validate();
    const told = JSON.parse(body);
    for (const [key, value] of Object.entries(told)) {
      if (!['data', 'data_base64', 'time'].includes(key)) assert.deepEqual(event[key], value, `${name} ${key}`);
    }
    if ('data' in told) assert.deepEqual(event.data, told.data, name);
    if ('data_base64' in told) assert.equal(event.data_base64, told.data_base64, name);
    console.log('ok', name);
  }
} else {
  const base = { source: '/function', type: 'done', time: '2026-01-02T03:04:05.000Z' };
  const cases = {
    json: { id: 'js-1', datacontenttype: 'application/json', data: { 'grüße': [1, 2.5, null] } },
    text: { id: 'js-2', datacontenttype: 'text/plain', subject: 'ü', data: 'plain "words"' },
    bytes: { id: 'js-3', datacontenttype: 'image/png', ext: 7, data: new Uint8Array([0x89, 0x50, 0x4e, 0x47, 13, 10]) },
  };
  for (const [name, attributes] of Object.entries(cases)) {
    const message = HTTP.structured(new CloudEvent({ ...base, ...attributes }));
    writeFileSync(join(folder, `1.0-json+kit-node-${name}.out`), message.body);
    writeFileSync(join(folder, `1.0-event+kit-node-${name}.out`), message.body);
    const binary = HTTP.binary(new CloudEvent({ ...base, ...attributes }));
    console.log(name, binary.headers, binary.body);
  }
}
