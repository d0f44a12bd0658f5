"""A small Kubernetes API server: lists and watches of namespaces and EndpointSlices as the real one has them on
the wire (pages, resourceVersion, BOOKMARK and ERROR events, chunked streams, Status objects), and the ways in which it
fails.
"""
import base64
import json
import socket
import ssl
import subprocess
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KINDS = {
    "namespaces": ("v1", "Namespace", "/api/v1/namespaces"),
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices"),
}
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 410: "Expired", 429: "TooManyRequests",
           500: "InternalError"}


def status(code, message):
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
            "reason": REASONS[code], "code": code}


class Stream(Exception):
    """The end of a watch; cut: without the end that HTTP wants."""

    def __init__(self, cut=False):
        self.cut = cut


class Api:
    """`faults` is what requests get instead of an answer, by (verb, kind): a status code, "hang", or "text" (no JSON),
    until taken away. An order, by kind, is for the watch that is open, or the next: "expire", "close" and "silence" at
    once, "cut" and "malformed" in place of the next event."""

    def __init__(self, bookmarks=1.0, tls=None, token=None):
        self.bookmarks, self.token, self.tls = bookmarks, token, tls
        self.lock = threading.Condition()
        self.version, self.oldest = 1000, 0
        self.objects = {kind: {} for kind in KINDS}
        self.history = []  # (version, kind, type of the event, object)
        self.faults, self.orders, self.requests = {}, {kind: [] for kind in KINDS}, []
        self.stale_pages = 0  # so many pages after the first are too old when they are asked for
        self.watches = {kind: 0 for kind in KINDS}  # that are open
        self.port, self.server, self.connections = 0, None, set()
        for name in ("default", "kube-system"):
            self.namespace(name)

    # -- the server

    def start(self):
        api = self

        class Server(ThreadingHTTPServer):
            daemon_threads, allow_reuse_address = True, True

            def handle_error(self, request, client_address):
                pass  # clients that go away

            def process_request(self, request, client_address):
                with api.lock:
                    api.connections.add(request)
                super().process_request(request, client_address)

            def finish_request(self, request, client_address):
                if api.tls:
                    request = api.tls.wrap_socket(request, server_side=True)
                super().finish_request(request, client_address)

            def shutdown_request(self, request):
                with api.lock:
                    api.connections.discard(request)
                super().shutdown_request(request)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                api.answer(self)
        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self):
        """Away: nobody listens, and what was open is closed."""
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        with self.lock:
            for connection in self.connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self.lock.notify_all()

    def kubeconfig(self, path):
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test", "preferences": {},
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "test", "user": {"token": self.token} if self.token else {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}]}))
        return path

    # -- objects

    def put(self, kind, name, metadata, rest):
        with self.lock:
            self.version += 1
            before = self.objects[kind].get(name)
            made = {
                "apiVersion": KINDS[kind][0], "kind": KINDS[kind][1],
                "metadata": {
                    "uid": before["metadata"]["uid"] if before else str(uuid.uuid4()),
                    "resourceVersion": str(self.version), "creationTimestamp": "2026-01-01T00:00:00Z",
                    "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                                       "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
                                       "fieldsV1": {"f:metadata": {"f:labels": {".": {}}}}}],
                    **metadata},
                **rest}
            self.objects[kind][name] = made
            self.history.append((self.version, kind, "MODIFIED" if before else "ADDED", made))
            self.lock.notify_all()

    def delete(self, kind, name):
        with self.lock:
            self.version += 1
            gone = self.objects[kind].pop(name)
            gone = {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(self.version)}}
            self.history.append((self.version, kind, "DELETED", gone))
            self.lock.notify_all()

    def namespace(self, name, **labels):
        self.put("namespaces", name, {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}},
                 {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})

    def slice(self, service, pods, name=None, ready=True, node=None, family="IPv4"):
        """An EndpointSlice of the Service NAMESPACE/NAME."""
        space, service = service.split("/")
        name = name or f"{service}-abcde"
        endpoints = [{
            "addresses": ["10.0.0.7"], "conditions": {"ready": ready, "serving": ready, "terminating": False},
            **({"nodeName": node} if node else {}),
            "targetRef": {"kind": "Pod", "namespace": space, "name": pod, "uid": str(uuid.uuid4())}} for pod in pods]
        self.put("endpointslices", f"{space}/{name}", {
            "name": name, "generateName": f"{service}-", "namespace": space, "generation": 1,
            "labels": {"endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                       "kubernetes.io/service-name": service},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": service, "uid": str(uuid.uuid4()),
                                 "controller": True, "blockOwnerDeletion": True}]},
            {"addressType": family, "endpoints": endpoints or None,
             "ports": [{"name": "", "port": 80, "protocol": "TCP"}]})

    # -- what goes wrong

    def fault(self, what, verbs=("list", "watch"), kinds=tuple(KINDS)):
        with self.lock:
            self.faults.update({(verb, kind): what for verb in verbs for kind in kinds})
            self.lock.notify_all()

    def heal(self):
        with self.lock:
            self.faults.clear()
            self.lock.notify_all()

    def order(self, what, kinds=tuple(KINDS)):
        with self.lock:
            for kind in kinds:
                self.orders[kind].append(what)
            self.lock.notify_all()

    def compact(self):
        """Forgets what happened before: who asks for it is told that it is too old."""
        with self.lock:
            self.oldest = self.version
            self.history.clear()

    def asked(self, verb=None, kind=None):
        """The requests until now."""
        with self.lock:
            return [r for r in self.requests if verb in (None, r["verb"]) and kind in (None, r["kind"])]

    # -- answers

    def answer(self, handler):
        url = urlsplit(handler.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        kind = next((k for k, (_, _, path) in KINDS.items() if path == url.path), None)
        verb = "watch" if query.get("watch") in ("1", "true") else "list"
        with self.lock:
            self.requests.append({"at": time.monotonic(), "verb": verb, "kind": kind, "path": handler.path,
                                  "query": query, "headers": handler.headers})
            fault = self.faults.get((verb, kind))
        if kind is None:
            return self.send(handler, 404, status(404, f"the server could not find {url.path}"))
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(handler, 401, status(401, "Unauthorized"))
        if fault == "hang":
            with self.lock:
                self.lock.wait_for(lambda: self.faults.get((verb, kind)) != "hang" or not self.server)
            handler.close_connection = True
            return None
        if fault == "text":
            return self.send(handler, 200, "this is no Kubernetes API\n")
        if fault == 403:
            message = (f'{kind} is forbidden: User "system:serviceaccount:fast:shared-socket" cannot {verb} resource '
                       f'"{kind}" in API group "" at the cluster scope')
            return self.send(handler, 403, status(403, message))
        if fault == 429:  # API Priority and Fairness sends text
            return self.send(handler, 429, "Too many requests, please try again later.\n", {"Retry-After": "1"})
        if fault == 410:
            return self.send(handler, 410, status(410, "too old resource version: 1 (2)"))
        if fault:
            return self.send(handler, fault, status(500, "etcdserver: leader changed"))
        if query.get("continue") and self.stale_pages:
            self.stale_pages -= 1
            return self.send(handler, 410, status(410, "The provided continue parameter is too old"))
        if verb == "list":
            return self.send(handler, 200, self.list(kind, query))
        return self.watch(handler, kind, query)

    @staticmethod
    def send(handler, code, document, headers=()):
        is_text = isinstance(document, str)
        body = (document if is_text else json.dumps(document) + "\n").encode()
        handler.send_response(code)
        handler.send_header("Content-Type", "text/plain; charset=utf-8" if is_text else "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in dict(headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def list(self, kind, query):
        group, name, _ = KINDS[kind]
        with self.lock:
            every = [self.objects[kind][key] for key in sorted(self.objects[kind])]
            version, first = self.version, 0
        if query.get("continue"):
            version, first = json.loads(base64.b64decode(query["continue"]))
        last = first + int(query.get("limit", len(every)) or len(every))
        metadata = {"resourceVersion": str(version)}
        if last < len(every):
            metadata["continue"] = base64.b64encode(json.dumps([version, last]).encode()).decode()
            metadata["remainingItemCount"] = len(every) - last
        # items of a list have neither kind nor apiVersion
        items = [{k: v for k, v in each.items() if k not in ("kind", "apiVersion")} for each in every[first:last]]
        return {"kind": f"{name}List", "apiVersion": group, "metadata": metadata, "items": items}

    def watch(self, handler, kind, query):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def write(text, whole=True):
            data = text.encode()
            handler.wfile.write(f"{len(data):x}\r\n".encode() + (data + b"\r\n" if whole else data[:len(data) // 2]))
            handler.wfile.flush()

        def event(what, thing):
            write(json.dumps({"type": what, "object": thing}) + "\n")
        with self.lock:
            self.watches[kind] += 1
        try:
            self.events(kind, query, write, event)
        except Stream as end:
            if not end.cut:
                handler.wfile.write(b"0\r\n\r\n")
                return
        except OSError:
            pass
        finally:
            with self.lock:
                self.watches[kind] -= 1
        handler.close_connection = True
        try:
            handler.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def events(self, kind, query, write, event):
        group, name, _ = KINDS[kind]
        seen = int(query["resourceVersion"])
        server, ends = self.server, time.monotonic() + int(query.get("timeoutSeconds", 300))
        if seen < self.oldest:
            event("ERROR", status(410, f"too old resource version: {seen} ({self.oldest})"))
            raise Stream
        while True:
            with self.lock:
                def news():
                    return [h for h in self.history if h[0] > seen and h[1] == kind]
                at_once = ("expire", "close", "silence")
                self.lock.wait_for(lambda: news() or self.server is not server or
                                   any(o in at_once for o in self.orders[kind]), self.bookmarks)
                if self.server is not server:
                    raise Stream(cut=True)
                todo = news()
                order = next((o for o in self.orders[kind] if o in at_once or todo), None)
                if order:
                    self.orders[kind].remove(order)
                version = self.version
            if order == "expire":
                event("ERROR", status(410, f"too old resource version: {seen} ({version})"))
                raise Stream
            if order == "close":
                raise Stream
            if order == "silence":
                with self.lock:
                    self.lock.wait_for(lambda: self.server is not server, 300)
                raise Stream(cut=True)
            for number, what, thing in ((h[0], h[2], h[3]) for h in todo):
                if order == "cut":
                    write(json.dumps({"type": what, "object": thing}) + "\n", whole=False)
                    raise Stream(cut=True)
                if order == "malformed":
                    line = json.dumps({"type": what, "object": thing})
                    write(line.replace('"metadata": {', '"metadata": {,,') + "\n")
                    order = None
                else:
                    event(what, thing)
                seen = number
            if not todo and query.get("allowWatchBookmarks") == "true":
                seen = max(seen, version)
                event("BOOKMARK", {"kind": name, "apiVersion": group,
                                   "metadata": {"resourceVersion": str(seen), "creationTimestamp": None}})
            if time.monotonic() > ends:
                raise Stream


def certificates(folder):
    """A CA, and a certificate for 127.0.0.1 by it: (path of the CA's, context of a server)."""
    def openssl(*argv):
        subprocess.run(["openssl", *map(str, argv)], check=True, capture_output=True, cwd=folder)
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=kubernetes",
            "-addext", "basicConstraints=critical,CA:TRUE")
    openssl("req", *new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=kube-apiserver")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "ext", "-out", "server.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    return folder / "ca.crt", context
