// Signs its requests with the AWS SDK for JavaScript, where a balancer asks who is there; says `done` when only the right ones were taken.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [kit, endpoint, accessKeyId, secretAccessKey] = process.argv.slice(2);
const sdk = createRequire(join(kit, 'package.json'))('@aws-sdk/client-lambda');
const client = (credentials) => new sdk.LambdaClient({ endpoint, region: 'us-east-1', credentials, maxAttempts: 3 });
const invoke = (by, more = {}) => by.send(new sdk.InvokeCommand({ FunctionName: 'only', Payload: '{"a": "é"}', ...more }));
const refused = (promise, name) => assert.rejects(promise, (error) => error.name === name && error.$metadata.attempts === 1);

const good = client({ accessKeyId, secretAccessKey });
let answer = await invoke(good);
assert.deepEqual([answer.StatusCode, Buffer.from(answer.Payload).toString()], [200, '{"a": "é"}']);
const arn = 'arn:aws:lambda:us-east-1:012345678912:function:b.only';
answer = await invoke(good, { FunctionName: arn, Qualifier: '$LATEST', LogType: 'Tail', ClientContext: 'e30=' });
assert.equal(answer.StatusCode, 200);
let got = '';
const stream = await good.send(new sdk.InvokeWithResponseStreamCommand({ FunctionName: 'only', Payload: '"plain"' }));
for await (const event of stream.EventStream) if (event.PayloadChunk) got += Buffer.from(event.PayloadChunk.Payload).toString();
assert.equal(got, '"plain"');
const seen = await good.send(new sdk.GetFunctionCommand({ FunctionName: 'only' }));
assert.equal(seen.Configuration.FunctionName, 'only');
await good.send(new sdk.UpdateFunctionConfigurationCommand({ FunctionName: 'only', Timeout: 9 }));

// What it may not, who is not known, and who only says to be.
await refused(invoke(good, { FunctionName: 'a.f' }), 'AccessDeniedException');
await refused(invoke(client({ accessKeyId: 'AKIDNOBODY', secretAccessKey })), 'UnrecognizedClientException');
const wrong = client({ accessKeyId, secretAccessKey: [...secretAccessKey].reverse().join('') });
await refused(invoke(wrong), 'InvalidSignatureException');
await refused(wrong.send(new sdk.DeleteFunctionCommand({ FunctionName: 'only' })), 'InvalidSignatureException');
console.log('done');
