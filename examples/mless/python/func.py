"""A handler as AWS Lambda has them; mless_runtime.py runs it, and says what the contract is."""


def handler(event, context):
    name = event.get("name", "world") if isinstance(event, dict) else event
    if name == "nobody":
        raise ValueError("nobody is there")
    print(f"{context.aws_request_id} has {context.get_remaining_time_in_millis()} ms left")
    return {"message": f"Hello, {name}, from {context.function_name}!"}
