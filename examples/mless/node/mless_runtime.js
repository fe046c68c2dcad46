// Runs a handler written for AWS Lambda in Stoker's format `mless`: `node mless_runtime.js`, with `handler: func.handler`.
//
// First, once: {"handler": "func.handler", "env": {...}} on STDIN, {"ok": true} on STDOUT; `ok: false` if the handler cannot be loaded.
// Then for each call: {"context": {...}, "deadline": milliseconds, "event": ...} on STDIN, and on STDOUT
// {"result": ..., "errors": false, "errortype": "", "invokeid": the request's id, "billing": {"duration", "memory", "used"}}.
// An error is an answer too: `errors: true`, and the result says errorMessage, errorType and stackTrace.
// The answers have STDOUT for themselves: what the handler writes there is the log.
'use strict';

const path = require('node:path');

const answers = process.stdout;
Object.defineProperty(process, 'stdout', { value: process.stderr });

function answer(text) {
  answers.write(`${text}\n`);
}

// The messages: JSON values. Usually one stands on a line, but it may stand on several, and then nothing else does.
async function* messages(source) {
  let held = '';
  for await (const piece of source) {
    const lines = (held + piece).split('\n');
    held = lines.pop();
    let value = '';
    for (const line of lines) {
      value += `${line}\n`;
      const message = parsed(value);
      if (message !== undefined) {
        yield message;
        value = '';
      }
    }
    held = value + held;
  }
}

// Undefined while not all of it is there.
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// Megabytes, as text: what Stoker gave the container, unless the environment names a size of its own.
function memorySize() {
  return process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE || process.env.FN_MEMORY || '1536';
}

// What a handler is given besides the event: Lambda's names, mless' values.
function contextOf(told, deadline) {
  const functionName = process.env.AWS_LAMBDA_FUNCTION_NAME || told.invoked_function_arn.split(':')[6] || '';
  return {
    awsRequestId: told.aws_request_id,
    invokedFunctionArn: told.invoked_function_arn,
    functionName,
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION || '$LATEST',
    memoryLimitInMB: memorySize(),
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME || `/aws/lambda/${functionName}`,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME || '',
    identity: told.identity && {
      cognitoIdentityId: told.identity.cognito_identity_id,
      cognitoIdentityPoolId: told.identity.cognito_identity_pool_id,
    },
    clientContext: told.client_context,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
  };
}

// The handler's outcome, by whichever of its ways it comes first: what it returns, its callback, or the context's old methods.
function outcome(handler, event, context) {
  return new Promise((resolve, reject) => {
    context.done = (error, result) => (error ? reject(error) : resolve(result));
    context.succeed = resolve;
    context.fail = (error) => reject(error ?? new Error('the handler failed'));
    const returned = handler(event, context, context.done);
    // Who takes a callback may return anything.
    if (returned instanceof Promise || (returned !== undefined && handler.length < 3)) resolve(returned);
  });
}

function failure(error) {
  if (!(error instanceof Error)) return { errorMessage: String(error), errorType: typeof error };
  return { errorMessage: error.message, errorType: error.name, stackTrace: (error.stack ?? '').split('\n') };
}

async function invoke(handler, request) {
  const context = contextOf(request.context, request.deadline);
  const began = performance.now();
  let errors = false;
  let result;
  try {
    // What JSON has no word for is null.
    result = JSON.stringify(await outcome(handler, request.event, context)) ?? 'null';
  } catch (error) {
    console.error(error);
    errors = true;
    result = JSON.stringify(failure(error));
  }
  const reply = {
    errortype: errors ? 'unhandled' : '',
    invokeid: context.awsRequestId,
    errors,
    billing: {
      duration: performance.now() - began,
      memory: memorySize(),
      used: Math.floor(process.resourceUsage().maxRSS / 1024),
    },
  };
  // The result is text already: serialised once, and a value that cannot be was the handler's error.
  return `{"result":${result},${JSON.stringify(reply).slice(1)}`;
}

// `func.handler` or `lib/func.handler`, looked for where the function is.
function load(name) {
  const dot = name.lastIndexOf('.');
  const handler = dot < 0 ? undefined : require(path.resolve(name.slice(0, dot)))[name.slice(dot + 1)];
  if (typeof handler !== 'function') throw new Error(`the handler ${name} is no function of a module`);
  return handler;
}

async function main() {
  process.stdin.setEncoding('utf8');
  const input = messages(process.stdin);
  const startup = (await input.next()).value;
  if (startup === undefined) return;
  Object.assign(process.env, startup.env, { _HANDLER: startup.handler });
  let handler;
  try {
    handler = load(startup.handler);
  } catch (error) {
    console.error(error);
    answer('{"ok":false}');
    process.exit(1);
  }
  answer('{"ok":true}');
  for await (const request of input) answer(await invoke(handler, request));
}

main();
