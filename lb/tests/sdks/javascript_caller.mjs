// Calls a balancer with the AWS SDK for JavaScript as its users do; says `done` when everything was as AWS has it.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [kit, endpoint] = process.argv.slice(2);
const sdk = createRequire(join(kit, 'package.json'))('@aws-sdk/client-lambda');
const credentials = { accessKeyId: 'any', secretAccessKey: 'any' };
const client = new sdk.LambdaClient({ endpoint, region: 'us-east-1', credentials, maxAttempts: 3 });
const invoke = (Payload, more = {}) => client.send(new sdk.InvokeCommand({ FunctionName: 'only', Payload, ...more }));
const text = (bytes) => Buffer.from(bytes).toString();

let answer = await invoke('{"a": 1}', { LogType: 'Tail' });
assert.deepEqual([answer.StatusCode, answer.ExecutedVersion, text(answer.Payload)], [200, '$LATEST', '{"a": 1}']);
assert.equal(Buffer.from(answer.LogResult, 'base64').toString(), 'line of only\n');
answer = await invoke('"error"');
assert.deepEqual([answer.StatusCode, answer.FunctionError], [200, 'Unhandled']);

const refused = (promise, name, attempts) =>
  assert.rejects(promise, (error) => error.name === name && error.$metadata.attempts === attempts);
await refused(invoke('{}', { FunctionName: 'none' }), 'ResourceNotFoundException', 1);
await refused(invoke('{'), 'InvalidRequestContentException', 1);
// It writes all of it before it reads anything, and ends with its process where nobody takes it.
await refused(invoke(Buffer.alloc(9 << 20, 32)), 'RequestTooLargeException', 1);
// What may have run is not sent again.
await refused(invoke('"lost"'), 'InvocationMayHaveStartedException', 1);

for (const [body, pieces, code] of [['"pieces"', 'one two three', undefined], ['"broken"', 'one two ', 'Unhandled']]) {
  const command = new sdk.InvokeWithResponseStreamCommand({ FunctionName: 'only', Payload: body });
  let got = '';
  let last;
  for await (const event of (await client.send(command)).EventStream) {
    if (event.PayloadChunk) got += text(event.PayloadChunk.Payload);
    last = event.InvokeComplete ?? last;
  }
  assert.deepEqual([got, last.ErrorCode], [pieces, code]);
}
assert.equal((await client.send(new sdk.ListFunctionsCommand({}))).Functions.length, 5);
console.log('done');
