// Runs a Node handler of AWS Lambda that came as a zip: by `aws-lambda-ric`, where the zip has it, else by what is below, which speaks the
// same Runtime API and finds the same words for what is wrong.
'use strict';
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { Writable, finished } = require('node:stream');
const { pathToFileURL } = require('node:url');
const { format } = require('node:util');

const root = process.env.LAMBDA_TASK_ROOT;
// Where layers have their modules, as on AWS.
const layers = ['/opt/nodejs/node_modules', `/opt/nodejs/node${process.versions.node.split('.')[0]}/node_modules`];
// AWS's client, of the versions 3 and 4.
const clients = ['aws-lambda-ric/bin/index.mjs', 'aws-lambda-ric/index.mjs'];
const places = [path.join(root, 'node_modules'), ...layers];
const own = places.flatMap((modules) => clients.map((client) => path.join(modules, client))).find((file) => fs.existsSync(file));
const api = process.env.AWS_LAMBDA_RUNTIME_API;
// By AWS's own names: whoever wraps handlers asks for them.
const STREAMS = Symbol.for('aws.lambda.runtime.handler.streaming');
const HIGH_WATER_MARK = Symbol.for('aws.lambda.runtime.handler.streaming.highWaterMark');
// Bytes that an answer may have.
const LIMIT = 6 * 1024 * 1024 + 100;
const NEXT = asking('GET', 'invocation/next') + '\r\n';
// The request id of the invocation that is under way.
let now;

// The beginning of a request.
function asking(method, what) {
  return `${method} /2018-06-01/runtime/${what} HTTP/1.1\r\nhost: ${api}\r\n`;
}

// A connection to the Runtime API, by hand: Node's HTTP client costs several times what an exchange does. Requests are written one after the other, and
// their answers come in that order. It keeps the process alive while one is awaited and not else, so that it is seen when a handler has nothing more to do.
class Connection {
  // Who awaits each answer; nobody, where only its order counts.
  #awaited = [];
  // What has come of an answer that is not whole, and how many bytes there must be before it is worth a look.
  #pieces = [];
  #size = 0;
  #enough = 1;
  #lost;

  constructor() {
    const [host, port] = api.split(':');
    const callback = (size, buffer) => this.#take(buffer.subarray(0, size));
    this.socket = net.connect({ host, port, onread: { buffer: Buffer.allocUnsafe(64 * 1024), callback } });
    this.socket.setNoDelay(true);
    this.socket.on('error', (error) => (this.#lost = error));
    this.socket.on('close', () => {
      this.#lost = this.#lost || new Error('the Runtime API has closed its connection');
      for (const who of this.#awaited.splice(0)) if (who) who.reject(this.#lost);
    });
  }

  // The answer to a request; `before` is one whose answer nobody wants, in the same write.
  ask(request, before = '') {
    return new Promise((resolve, reject) => {
      if (this.#lost) return reject(this.#lost);
      if (before) this.#awaited.push(undefined);
      this.#awaited.push({ resolve, reject });
      this.socket.ref();
      this.socket.write(before + request);
    });
  }

  // A request whose body is to be written, and whose answer nobody wants.
  begin(request) {
    this.#awaited.push(undefined);
    this.socket.write(request);
  }

  // Answers of the Runtime API have a length, all of them. Their bytes are overwritten by what comes next.
  #take(bytes) {
    this.#size += bytes.length;
    if (this.#pieces.length || this.#size < this.#enough) this.#pieces.push(Buffer.from(bytes));
    if (this.#size < this.#enough) return;
    let rest = this.#pieces.length ? Buffer.concat(this.#pieces) : bytes;
    for (;;) {
      const end = rest.indexOf('\r\n\r\n');
      this.#enough = rest.length + 1;
      if (end < 0) break;
      const headers = headersOf(rest.toString('utf8', 0, end));
      const over = end + 4 + Number(headers['content-length'] || 0);
      if (rest.length < over) {
        this.#enough = over;
        break;
      }
      const who = this.#awaited.shift();
      if (!this.#awaited.length) this.socket.unref();
      if (who) who.resolve({ headers, body: rest.toString('utf8', end + 4, over) });
      rest = rest.subarray(over);
    }
    this.#pieces = rest.length ? [Buffer.from(rest)] : [];
    this.#size = rest.length;
  }
}

function headersOf(head) {
  const headers = { __proto__: null };
  for (const line of head.split('\r\n')) {
    const at = line.indexOf(':');
    if (at > 0) headers[line.slice(0, at).toLowerCase()] = line.slice(at + 1).trim();
  }
  return headers;
}

// An answer that is streamed: what the handler writes is the body of a request, chunk by chunk.
class Answer extends Writable {
  #connection;
  #id;
  #begun = false;
  #type = 'application/octet-stream';
  #trailers = '';

  constructor(connection, id, highWaterMark) {
    super({ highWaterMark });
    this.#connection = connection;
    this.#id = id;
  }

  setContentType(type) {
    if (this.#begun) throw refused('InvalidStreamingOperation', 'Cannot set content-type, too late.');
    if (/[^\t\x20-\x7e]/.test(type)) throw new TypeError('Invalid character in header content ["content-type"]');
    this.#type = type;
  }

  // What is neither text nor bytes is written as JSON, as on AWS.
  write(piece, ...more) {
    const is = piece === null || piece === undefined || typeof piece === 'string' || piece instanceof Uint8Array;
    return super.write(is ? piece : JSON.stringify(piece), ...more);
  }

  // The handler failed: that follows what it wrote.
  failed({ type, body }) {
    const coded = Buffer.from(body).toString('base64');
    this.#trailers = `Lambda-Runtime-Function-Error-Type: ${type}\r\nLambda-Runtime-Function-Error-Body: ${coded}\r\n`;
  }

  #send(pieces, done) {
    const { socket } = this.#connection;
    socket.cork();
    if (!this.#begun) {
      this.#begun = true;
      const told = [
        'lambda-runtime-function-response-mode: streaming',
        `content-type: ${this.#type}`,
        'transfer-encoding: chunked',
        'trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body',
      ];
      this.#connection.begin(`${asking('POST', `invocation/${this.#id}/response`)}${told.join('\r\n')}\r\n\r\n`);
    }
    for (const piece of pieces) socket.write(piece);
    socket.write('', done);
    socket.uncork();
  }

  _writev(pieces, done) {
    const some = pieces.filter(({ chunk }) => chunk.length);
    this.#send(some.flatMap(({ chunk }) => [`${chunk.length.toString(16)}\r\n`, chunk, '\r\n']), done);
  }

  _final(done) {
    this.#send([`0\r\n${this.#trailers}\r\n`], done);
  }

  // Who gives it up in its midst leaves an answer that is seen to be cut off.
  _destroy(error, done) {
    if (!this.writableFinished) this.#connection.socket.destroy();
    done(error);
  }
}

// What is wrong, by the name that AWS has for it.
function refused(name, message) {
  return Object.assign(new Error(message), { name, stack: '' });
}

function posting(what, body, headers = '') {
  const length = Buffer.byteLength(body);
  return `${asking('POST', what)}content-type: application/json\r\ncontent-length: ${length}\r\n${headers}\r\n${body}`;
}

function told(error) {
  const named = error instanceof Error ? error : Object.assign(new Error(String(error)), { name: typeof error });
  const trace = named.stack ? named.stack.split('\n') : [];
  const said = { errorType: named.name, errorMessage: named.message };
  console.error(`${now ? 'Invoke' : 'Init'} Error \t${JSON.stringify({ ...said, stack: trace })}`);
  // It becomes a header, whatever a handler calls its errors.
  const type = String(named.name).slice(0, 1000).replace(/[^\x20-\x7e]/g, '');
  return { type, body: JSON.stringify({ ...said, trace }) };
}

function failing(what, error) {
  const { type, body } = told(error);
  return posting(what, body, `lambda-runtime-function-error-type: ${type}\r\n`);
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

// What of a context is the same for all invocations.
const FIXED = {
  functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
  functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
  memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
  logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
  logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
  callbackWaitsForEmptyEventLoop: true,
};

function contextOf(headers, done) {
  const parsed = (text) => (text ? JSON.parse(text) : undefined);
  const deadline = Number(headers['lambda-runtime-deadline-ms']);
  return {
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    clientContext: parsed(headers['lambda-runtime-client-context']),
    identity: parsed(headers['lambda-runtime-cognito-identity']),
    tenantId: headers['lambda-runtime-aws-tenant-id'],
    ...FIXED,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
    done,
    succeed: (value) => done(null, value),
    fail: (error) => done(error ?? new Error('handled')),
  };
}

// What is to be done once nothing is left to do.
let idle = () => {};
process.on('beforeExit', () => idle());

// A value by a promise, a callback, or none once the handler has nothing more to do.
function called(handler, event, headers) {
  return new Promise((resolve, reject) => {
    const done = (error, value) => (error ? reject(error) : resolve(value));
    let last = null;
    idle = () => resolve(last);
    const context = contextOf(headers, done);
    // A value by the callback is the answer when nothing is left to do, unless the handler does not want to wait for that.
    const callback = (error, value) => {
      if (error || !context.callbackWaitsForEmptyEventLoop) done(error, value);
      else last = value;
    };
    const result = handler(event, context, callback);
    if (typeof result?.then === 'function') result.then(resolve, reject);
  });
}

// What answers an invocation.
async function whole(_, handler, id, event, headers) {
  const value = await called(handler, event, headers);
  let body;
  try {
    body = JSON.stringify(value === undefined ? null : value) ?? 'null';
  } catch {
    throw new Error('Unable to stringify response body');
  }
  // One that is too long is refused for that: more than shows it is not needed.
  return posting(`invocation/${id}/response`, body.slice(0, LIMIT + 1));
}

// Nothing is left to say of an invocation whose answer was streamed.
async function streamed(connection, handler, id, event, headers) {
  const answer = new Answer(connection, id, handler[HIGH_WATER_MARK]);
  const over = new Promise((resolve, reject) => finished(answer, (error) => (error ? reject(error) : resolve(''))));
  // It may be so before anybody looks.
  over.catch(() => {});
  try {
    await handler(event, answer, contextOf(headers, () => {}));
  } catch (error) {
    answer.failed(told(error));
  }
  if (!answer.writableEnded) answer.end();
  return over;
}

globalThis.awslambda = {
  streamifyResponse: (handler, options) => Object.assign(handler, { [STREAMS]: 'response', [HIGH_WATER_MARK]: options?.highWaterMark }),
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
  let connection = new Connection();
  let handler;
  try {
    handler = await found(process.argv[2]);
  } catch (error) {
    await connection.ask(failing('init/error', error));
    process.exit(1);
  }
  const last = (name) => async (error) => {
    try {
      // On a connection of its own: on the other one an answer may be half written.
      if (now) await new Connection().ask(failing(`invocation/${now}/error`, name ? refused(name, String(error)) : error));
    } finally {
      process.exit(name ? 128 : 129);
    }
  };
  process.on('uncaughtException', last());
  process.on('unhandledRejection', last('Runtime.UnhandledPromiseRejection'));
  let answer = '';
  for (;;) {
    const { headers, body } = await connection.ask(NEXT, answer);
    const id = (now = headers['lambda-runtime-aws-request-id']);
    delete process.env._X_AMZN_TRACE_ID;
    if (headers['lambda-runtime-trace-id']) process.env._X_AMZN_TRACE_ID = headers['lambda-runtime-trace-id'];
    try {
      answer = await (handler[STREAMS] ? streamed : whole)(connection, handler, id, JSON.parse(body), headers);
    } catch (error) {
      answer = failing(`invocation/${id}/error`, error);
      // That of an answer that was cut off is gone.
      if (connection.socket.destroyed) connection = new Connection();
    }
    idle = () => {};
    now = undefined;
  }
}

process.env.NODE_PATH = [process.env.NODE_PATH, ...layers].filter(Boolean).join(':');
require('node:module')._initPaths();
if (own) import(pathToFileURL(own));
else main();
