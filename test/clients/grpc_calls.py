"""A gRPC server and a client of it, with gRPC's own library (Debian's python3-grpcio) and octets for messages.

    grpc_calls.py serve ADDRESS:PORT FOLDER STREAMS    with origin.key and origin.pem of the folder; at most STREAMS calls of a connection at once
    grpc_calls.py call ADDRESS:PORT NAME CA-FILE CASE  verifies NAME; prints one line of JSON

The server prints a line for each thing that happens to a call.
"""
import json
import sys
import threading
import time
from concurrent import futures

import grpc

lock = threading.Lock()
now = most = 0


def say(*words):
    with lock:
        print(*words, flush=True)


def echo(requests, context):
    """Each message is answered before the next is read; trailers say how many there were."""
    count = 0
    for request in requests:
        count += 1
        yield b"echo " + request
    context.set_trailing_metadata((("x-count", str(count)), ("x-octets-bin", b"\0\xff")))


def early(requests, context):
    """Ends the call with a status after one message, whatever the client still sends."""
    yield b"first " + next(requests)[:5]
    context.abort(grpc.StatusCode.OUT_OF_RANGE, "enough")


def nothing(_request, context):
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: \u00fc%")


def wait(requests, context):
    over = threading.Event()

    def ended():
        say("ended", next(value for key, value in context.invocation_metadata() if key == "x-name"))
        over.set()

    context.add_callback(ended)
    yield next(requests)
    over.wait(60)


def busy(request, _context):
    global now, most
    with lock:
        now += 1
        most = max(most, now)
    time.sleep(0.005)
    with lock:
        now -= 1
        return b"%d" % most


def serve(address, folder, streams):
    with open(folder + "/origin.key", "rb") as key, open(folder + "/origin.pem", "rb") as certificate:
        credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
    size = [("grpc.max_concurrent_streams", int(streams)), ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=size)
    handlers = {name: grpc.stream_stream_rpc_method_handler(method) for name, method in (("Echo", echo), ("Early", early), ("Wait", wait))}
    handlers.update({name: grpc.unary_unary_rpc_method_handler(method) for name, method in (("Nothing", nothing), ("Busy", busy), ("Same", lambda request, _: request))})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.S", handlers),))
    server.add_secure_port(address, credentials)
    server.start()
    say("ready")
    server.wait_for_termination()


class Messages:
    """What is sent: one message at a time, when it is given; ended by None."""

    def __init__(self):
        self.given, self.more = [], threading.Condition()

    def give(self, message):
        with self.more:
            self.given.append(message)
            self.more.notify()

    def __iter__(self):
        return self

    def __next__(self):
        with self.more:
            while not self.given:
                self.more.wait()
            message = self.given.pop(0)
        if message is None:
            raise StopIteration
        return message


def call(address, name, ca, case):
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    options = [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name), ("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    channel = grpc.secure_channel(address, credentials, options=options)
    unary = lambda method: channel.unary_unary("/t.S/" + method)
    stream = lambda method: channel.stream_stream("/t.S/" + method)
    got = {}
    if case == "both":
        messages = Messages()
        answers = stream("Echo")(messages, timeout=50)
        got["messages"] = []
        for i in range(5):
            messages.give(b"message %d" % i)
            got["messages"].append(next(answers).decode())
        messages.give(None)
        got["rest"] = [str(answer) for answer in answers]
        got["code"], got["trailers"] = answers.code().name, {key: str(value) for key, value in answers.trailing_metadata()}
    elif case == "early":
        # It goes on sending, far more than windows hold.
        def endless():
            while True:
                yield b"x" * 1_000_000
        got["calls"] = []
        for _ in range(12):
            answers = stream("Early")(endless(), timeout=50)
            got["calls"].append([next(answers).decode(), answers.code().name, answers.details()])
        got["after"] = unary("Same")(b"after", timeout=50).decode()
    elif case == "nothing":
        try:
            unary("Nothing")(b"", timeout=50)
        except grpc.RpcError as error:
            got = {"code": error.code().name, "details": error.details(), "head": len(error.initial_metadata())}
    elif case == "cancel":
        messages = Messages()
        answers = stream("Wait")(messages, metadata=(("x-name", "cancelled"),))
        messages.give(b"one")
        got["first"] = next(answers).decode()
        answers.cancel()
        got["code"] = answers.code().name
        late = Messages()
        answers = stream("Wait")(late, timeout=1, metadata=(("x-name", "late"),))
        late.give(b"two")
        got["second"] = next(answers).decode()
        try:
            next(answers)
        except grpc.RpcError as error:
            got["late"] = error.code().name
        got["after"] = unary("Same")(b"after", timeout=50).decode()
        for one in (messages, late):
            one.give(None)
    elif case == "many":
        calls = [unary("Busy").future(b"", timeout=100) for _ in range(1000)]
        got = {"calls": len([each.result() for each in calls]), "most": max(int(each.result()) for each in calls)}
    elif case == "large":
        text = bytes(range(256)) * 80_000
        got["same"] = unary("Same")(text, timeout=100) == text
    print(json.dumps(got), flush=True)
    channel.close()


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
