"""An Internet Gateway Device over HTTP on loopback: its description and its SOAP answers are what the test says."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">{base}<device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>
<controlURL>{control}</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>
<controlURL>{control}</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""
ENVELOPE = '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{}</s:Body></s:Envelope>'
FAULT = "<s:Fault><detail><UPnPError><errorCode>{}</errorCode></UPnPError></detail></s:Fault>"
CONTROL = "/ctl"
MOST_ENDLESS_BYTES = 2 << 30


class FakeIgd:
    """What a test may change: the outside address, codes of refusals by lifetime or port, the description itself."""

    def __init__(self) -> None:
        self.outside = "11.7.1.2"
        self.only_permanent = False
        self.taken: set[int] = set()
        self.refusal = 0
        self.description: bytes | None = None
        self.control = CONTROL
        self.base = ""
        self.endless = self.stalls = False
        self.moved_to = ""
        self.mappings: dict[int, dict[str, str]] = {}
        self.asked: list[str] = []
        self.url = ""
        self.ended = threading.Event()

    def carry_out(self, action: str, given: dict[str, str]) -> tuple[int, str]:
        """The status and the body of the answer to one SOAP action."""
        code = self.refusal
        if action == "GetExternalIPAddress":
            code = 0
        elif action == "AddPortMapping":
            if self.only_permanent and given["NewLeaseDuration"] != "0":
                code = 725
            elif int(given["NewExternalPort"]) in self.taken:
                code = 718
            if not code:
                self.mappings[int(given["NewExternalPort"])] = given
        elif action == "DeletePortMapping" and self.mappings.pop(int(given["NewExternalPort"]), None) is None:
            code = 714
        if code:
            return 500, ENVELOPE.format(FAULT.format(code))
        outside = f"<NewExternalIPAddress>{self.outside}</NewExternalIPAddress>"
        kind = "urn:schemas-upnp-org:service:WANIPConnection:1"
        return 200, ENVELOPE.format(f'<u:{action}Response xmlns:u="{kind}">{outside}</u:{action}Response>')


@contextmanager
def igd() -> Iterator[FakeIgd]:
    """A device that answers within the block."""
    fake = FakeIgd()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            fake.asked.append(self.path)
            if fake.stalls:
                fake.ended.wait(20)
                return
            if fake.moved_to:
                self.send_response(302)
                self.send_header("Location", fake.moved_to)
                self.end_headers()
                return
            text = DESCRIPTION.format(control=fake.control, base=fake.base)
            body = text.encode() if fake.description is None else fake.description
            self.send_response(200)
            if not fake.endless:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
                for _ in range(MOST_ENDLESS_BYTES >> 20 if fake.endless else 0):
                    self.wfile.write(bytes(1 << 20))
            except OSError:  # it had enough
                pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            action = self.headers["SOAPAction"].strip('"').partition("#")[2]
            fake.asked.append(action)
            if self.path != CONTROL:
                self.send_error(404)
                return
            status, answer = fake.carry_out(action, dict(re.findall(r"<(New\w+)>([^<]*)</", body)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/description.xml"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
