// Runs a Node handler of AWS Lambda that came as a zip: by `aws-lambda-ric`, where the zip has it, else by what is below, which speaks the
// same Runtime API and finds the same words for what is wrong.
'use strict';
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { format } = require('node:util');

const root = process.env.LAMBDA_TASK_ROOT;
// Where layers have their modules, as on AWS.
const layers = ['/opt/nodejs/node_modules', `/opt/nodejs/node${process.versions.node.split('.')[0]}/node_modules`];
const ours = [path.join(root, 'node_modules'), ...layers].map((modules) => path.join(modules, 'aws-lambda-ric/bin/index.mjs'));
const own = ours.find((file) => fs.existsSync(file));
const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(':');
// Connections that wait do not keep the process alive, so that it is seen when a handler has nothing more to do.
const agent = new http.Agent({ keepAlive: true });
// By AWS's own name: whoever wraps handlers asks for it.
const STREAMS = Symbol.for('aws.lambda.runtime.handler.streaming');
// The request id of the invocation that is under way.
let now;

// What is wrong, by the name that AWS has for it.
function refused(name, message) {
  return Object.assign(new Error(message), { name, stack: '' });
}

function post(what, headers) {
  return http.request({ host, port, agent, headers, method: 'POST', path: `/2018-06-01/runtime/${what}` });
}

// Until the answer to a request is read.
function over(request) {
  return new Promise((resolve, reject) => {
    request.on('error', reject);
    request.on('response', (answer) => {
      const pieces = [];
      answer.on('data', (piece) => pieces.push(piece));
      answer.on('end', () => resolve({ headers: answer.headers, body: Buffer.concat(pieces).toString() }));
      answer.on('error', reject);
    });
  });
}

function send(what, body, headers = {}) {
  const request = post(what, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), ...headers });
  const done = over(request);
  request.end(body);
  return done;
}

function told(error) {
  const named = error instanceof Error ? error : Object.assign(new Error(String(error)), { name: typeof error });
  const trace = named.stack ? named.stack.split('\n') : [];
  const said = { errorType: named.name, errorMessage: named.message };
  console.error(`${now ? 'Invoke' : 'Init'} Error \t${JSON.stringify({ ...said, stack: trace })}`);
  return { type: named.name, body: JSON.stringify({ ...said, trace }) };
}

function fail(what, error) {
  const { type, body } = told(error);
  return send(what, body, { 'lambda-runtime-function-error-type': type });
}

async function loaded(file) {
  for (const end of ['.js', '.mjs', '.cjs', '']) {
    const at = file + end;
    if (!fs.existsSync(at) || fs.statSync(at).isDirectory()) continue;
    try {
      return require(at);
    } catch (error) {
      if (error.code === 'ERR_REQUIRE_ESM' || error.code === 'ERR_REQUIRE_ASYNC_MODULE') return import(pathToFileURL(at));
      if (error instanceof SyntaxError) throw refused('Runtime.UserCodeSyntaxError', `SyntaxError: ${error.message}`);
      if (error.code === 'MODULE_NOT_FOUND') throw refused('Runtime.ImportModuleError', `Error: ${error.message}`);
      throw error;
    }
  }
  throw refused('Runtime.ImportModuleError', `Error: Cannot find module '${path.basename(file)}'`);
}

async function found(handler) {
  const named = /^([^.]+)\.(.+)$/.exec(path.basename(handler));
  if (!named || handler.includes('..')) throw refused('Runtime.MalformedHandlerName', 'Bad handler');
  const module = await loaded(path.resolve(root, path.dirname(handler), named[1]));
  const inside = named[2].split('.');
  const reach = (from) => inside.reduce((value, name) => value?.[name], from);
  const reached = reach(module) ?? reach(module.default);
  if (reached === undefined) throw refused('Runtime.HandlerNotFound', `${handler} is undefined or not exported`);
  if (typeof reached !== 'function') throw refused('Runtime.HandlerNotFound', `${handler} is not a function`);
  return reached;
}

function contextOf(headers, done) {
  const parsed = (text) => (text ? JSON.parse(text) : undefined);
  const deadline = Number(headers['lambda-runtime-deadline-ms']);
  return {
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    clientContext: parsed(headers['lambda-runtime-client-context']),
    identity: parsed(headers['lambda-runtime-cognito-identity']),
    tenantId: headers['lambda-runtime-aws-tenant-id'],
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    callbackWaitsForEmptyEventLoop: true,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
    done,
    succeed: (value) => done(null, value),
    fail: (error) => done(error ?? new Error('handled')),
  };
}

// A value by a promise, a callback, or none once the handler has nothing more to do.
function called(handler, event, headers) {
  return new Promise((resolve, reject) => {
    const done = (error, value) => (error ? reject(error) : resolve(value));
    let last = null;
    process.once('beforeExit', () => resolve(last));
    const context = contextOf(headers, done);
    // A value by the callback is the answer when nothing is left to do, unless the handler does not want to wait for that.
    const callback = (error, value) => {
      if (error || !context.callbackWaitsForEmptyEventLoop) done(error, value);
      else last = value;
    };
    const result = handler(event, context, callback);
    if (typeof result?.then === 'function') result.then(resolve, reject);
  }).finally(() => process.removeAllListeners('beforeExit'));
}

async function whole(handler, id, event, headers) {
  const value = await called(handler, event, headers);
  let body;
  try {
    body = JSON.stringify(value === undefined ? null : value) ?? 'null';
  } catch {
    throw new Error('Unable to stringify response body');
  }
  await send(`invocation/${id}/response`, body);
}

async function streamed(handler, id, event, headers) {
  const request = post(`invocation/${id}/response`, {
    'lambda-runtime-function-response-mode': 'streaming',
    'content-type': 'application/octet-stream',
    'transfer-encoding': 'chunked',
    trailer: 'Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body',
  });
  const done = over(request);
  request.setContentType = (type) => request.setHeader('content-type', type);
  try {
    await handler(event, request, contextOf(headers, () => {}));
  } catch (error) {
    const { type, body } = told(error);
    request.addTrailers({
      'Lambda-Runtime-Function-Error-Type': type,
      'Lambda-Runtime-Function-Error-Body': Buffer.from(body).toString('base64'),
    });
  }
  if (!request.writableEnded) request.end();
  await done;
}

globalThis.awslambda = {
  streamifyResponse: (handler) => Object.assign(handler, { [STREAMS]: 'response' }),
  HttpResponseStream: {
    from(stream, head) {
      stream.setContentType('application/vnd.awslambda.http-integration-response');
      stream.write(JSON.stringify(head));
      stream.write(Buffer.alloc(8));
      return stream;
    },
  },
};

// What a handler writes as AWS writes it: when, in which invocation, and how it was meant.
const LEVELS = { log: 'INFO', info: 'INFO', debug: 'DEBUG', trace: 'TRACE', warn: 'WARN', error: 'ERROR' };
function logAsAwsDoes() {
  for (const [name, level] of Object.entries(LEVELS)) {
    console[name] = (...words) => process.stdout.write(`${new Date().toISOString()}\t${now}\t${level}\t${format(...words)}\n`);
  }
}

async function main() {
  logAsAwsDoes();
  let handler;
  try {
    handler = await found(process.argv[2]);
  } catch (error) {
    await fail('init/error', error);
    process.exit(1);
  }
  const last = (name) => async (error) => {
    if (now) await fail(`invocation/${now}/error`, name ? refused(name, String(error)) : error);
    process.exit(name ? 128 : 129);
  };
  process.on('uncaughtException', last());
  process.on('unhandledRejection', last('Runtime.UnhandledPromiseRejection'));
  for (;;) {
    const request = http.get({ host, port, agent, path: '/2018-06-01/runtime/invocation/next' });
    const { headers, body } = await over(request);
    const id = (now = headers['lambda-runtime-aws-request-id']);
    delete process.env._X_AMZN_TRACE_ID;
    if (headers['lambda-runtime-trace-id']) process.env._X_AMZN_TRACE_ID = headers['lambda-runtime-trace-id'];
    try {
      await (handler[STREAMS] ? streamed : whole)(handler, id, JSON.parse(body), headers);
    } catch (error) {
      await fail(`invocation/${id}/error`, error);
    }
    now = undefined;
  }
}

process.env.NODE_PATH = [process.env.NODE_PATH, ...layers].filter(Boolean).join(':');
require('node:module')._initPaths();
if (own) import(pathToFileURL(own));
else main();
