// Manages functions of a balancer with the AWS SDK for JavaScript as its users do; says `done` when everything was as AWS has it.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [kit, archive, endpoint] = process.argv.slice(2);
const sdk = createRequire(join(kit, 'package.json'))('@aws-sdk/client-lambda');
const credentials = { accessKeyId: 'any', secretAccessKey: 'any' };
const client = new sdk.LambdaClient({ endpoint, region: 'us-east-1', credentials, maxAttempts: 3 });
const send = (command, input) => client.send(new sdk[`${command}Command`](input));
const refused = (promise, name) =>
  assert.rejects(promise, (error) => error.name === name && error.$metadata.attempts === 1);
const FunctionName = 'made';

const ZipFile = Buffer.from(archive, 'base64');
const made = { FunctionName, Runtime: 'nodejs22.x', Role: 'r', Handler: 'index.handler' };
const created = await send('CreateFunction', { ...made, Code: { ZipFile }, Publish: true });
assert.deepEqual([created.State, created.CodeSize, created.Handler], ['Active', ZipFile.length, 'index.handler']);
await sdk.waitUntilFunctionActiveV2({ client, maxWaitTime: 10 }, { FunctionName });
await refused(send('CreateFunction', { ...made, Code: { ZipFile } }), 'ResourceConflictException');
await send('UpdateFunctionConfiguration', { FunctionName, MemorySize: 256, RevisionId: created.RevisionId });
await sdk.waitUntilFunctionUpdatedV2({ client, maxWaitTime: 10 }, { FunctionName });
await refused(send('UpdateFunctionConfiguration', { FunctionName, RevisionId: created.RevisionId }), 'PreconditionFailedException');
const { Version } = await send('PublishVersion', { FunctionName });
assert.equal(Version, '2');
const alias = { FunctionName, Name: 'live' };
await send('CreateAlias', { ...alias, FunctionVersion: '1', RoutingConfig: { AdditionalVersionWeights: { 2: 0.25 } } });
const seen = await send('GetAlias', alias);
assert.deepEqual([seen.FunctionVersion, seen.RoutingConfig.AdditionalVersionWeights], ['1', { 2: 0.25 }]);
const answer = await send('Invoke', { FunctionName, Qualifier: 'live', Payload: '7' });
assert.equal(Buffer.from(answer.Payload).toString(), '7');
assert.ok(['1', '2'].includes(answer.ExecutedVersion), answer.ExecutedVersion);
const { Versions } = await send('ListVersionsByFunction', { FunctionName });
assert.deepEqual(Versions.map((version) => version.Version), ['$LATEST', '1', '2']);
await refused(send('DeleteFunction', { FunctionName, Qualifier: '1' }), 'ResourceConflictException');
await send('PutFunctionConcurrency', { FunctionName, ReservedConcurrentExecutions: 3 });
assert.equal((await send('GetFunction', { FunctionName })).Concurrency.ReservedConcurrentExecutions, 3);
await send('DeleteAlias', alias);
await refused(send('GetAlias', alias), 'ResourceNotFoundException');
await send('DeleteFunction', { FunctionName });
await refused(send('GetFunction', { FunctionName }), 'ResourceNotFoundException');
console.log('done');
