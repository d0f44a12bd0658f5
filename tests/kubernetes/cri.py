"""A small client of CRI v1: what a kubelet asks of a container runtime, over the runtime's unix socket.

The messages are made from the project's own copy of api.proto, by protoc, when first needed.
"""
import functools
import importlib.util
import json
import subprocess
import tempfile
import time
from pathlib import Path

import grpc

PROTO = Path(__file__).resolve().parents[2] / "crates" / "shared-socket" / "proto" / "cri" / "v1" / "api.proto"


@functools.lru_cache(maxsize=None)
def messages():
    """The module that protoc makes of api.proto. One for the process: protobuf knows each message once."""
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(["protoc", f"-I{PROTO.parent}", f"--python_out={out}", PROTO.name], check=True)
        spec = importlib.util.spec_from_file_location("api_pb2", f"{out}/api_pb2.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class CriError(Exception):
    """What the runtime answered: .code is gRPC's (NOT_FOUND ...)."""

    def __init__(self, method, error):
        super().__init__(f"{method}: {error.code().name}: {error.details()}")
        self.code = error.code().name


class Cri:
    def __init__(self, socket_path):
        self.api = messages()
        self.channel = grpc.insecure_channel(f"unix://{socket_path}", options=[
            ("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", 64 << 20),
            # A runtime that was started again is to be found at once, not after gRPC's usual patience.
            ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)])
        self.methods = {}
        for service in self.api.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                # Those that answer more than once are not for us.
                if not method.name.startswith("Stream") and method.name != "GetContainerEvents":
                    self.methods[method.name] = self.channel.unary_unary(
                        f"/{service.full_name}/{method.name}",
                        request_serializer=getattr(self.api, method.input_type.name).SerializeToString,
                        response_deserializer=getattr(self.api, method.output_type.name).FromString)

    def call(self, method, request=None, timeout=60, wait=False, **fields):
        """One call. The request is a message, or its fields; wait: until the runtime is there."""
        if request is None:
            request = getattr(self.api, f"{method}Request")(**fields)
        try:
            return self.methods[method](request, timeout=timeout, wait_for_ready=wait)
        except grpc.RpcError as error:
            raise CriError(method, error) from None

    def close(self):
        self.channel.close()

    # -- the runtime

    def version(self, **kw):
        return self.call("Version", **kw)

    def ready(self):
        """Whether the runtime and its network are; else what it says."""
        try:
            conditions = self.call("Status", timeout=5).status.conditions
        except CriError:
            return False
        return bool(conditions) and all(c.status for c in conditions)

    def images(self):
        """The name of each image."""
        return {tag for image in self.call("ListImages").images for tag in image.repo_tags}

    # -- sandboxes

    def run_pod(self, name, namespace, uid, labels=None, annotations=None, cgroup_parent="", host_network=False,
                log_directory="", hostname=None, port_mappings=()):
        """Runs a sandbox as a kubelet would: (its id, its configuration, which containers in it need)."""
        api = self.api
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, namespace=namespace, uid=uid),
            hostname="" if host_network else hostname or name,
            log_directory=log_directory,
            # Said here so that the runtime does not copy the host's resolv.conf.
            dns_config=api.DNSConfig(servers=["127.0.0.1"]),
            port_mappings=[api.PortMapping(container_port=inner, host_port=outer) for inner, outer in port_mappings],
            labels={"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace,
                    "io.kubernetes.pod.uid": uid, **(labels or {})},
            annotations=annotations or {})
        config.linux.cgroup_parent = cgroup_parent
        options = config.linux.security_context.namespace_options
        options.network = api.NODE if host_network else api.POD
        options.pid = api.CONTAINER
        sandbox = self.call("RunPodSandbox", config=config).pod_sandbox_id
        return sandbox, config

    def insist(self, method, *args, **kw):
        """call(), again if a container ended by itself in the middle of it ("ttrpc: closed"): a kubelet does so too."""
        for _ in range(10):
            try:
                return self.call(method, *args, **kw)
            except CriError as error:
                if error.code != "UNKNOWN":
                    raise
                last = error
                time.sleep(0.2)
        raise last

    def stop_pod(self, sandbox):
        self.insist("StopPodSandbox", pod_sandbox_id=sandbox)

    def remove_pod(self, sandbox):
        self.stop_pod(sandbox)
        self.insist("RemovePodSandbox", pod_sandbox_id=sandbox)

    def list_pods(self, ready_only=True):
        items = self.call("ListPodSandbox").items
        return [i for i in items if not ready_only or i.state == self.api.SANDBOX_READY]

    def pod_status(self, sandbox):
        """(status, what the runtime says besides: pid, runtimeSpec ...)."""
        answer = self.call("PodSandboxStatus", pod_sandbox_id=sandbox, verbose=True)
        return answer.status, json.loads(answer.info.get("info", "{}"))

    # -- containers

    def create_container(self, sandbox, config, name, image, command, args=(), mounts=(), env=None, labels=None,
                         capabilities=(), attempt=0):
        """mounts: (path on the host, path in the container, read-only). `config` is what run_pod() gave."""
        api = self.api
        container = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name, attempt=attempt),
            image=api.ImageSpec(image=image),
            command=[str(c) for c in command], args=[str(a) for a in args],
            envs=[api.KeyValue(key=k, value=str(v).encode()) for k, v in (env or {}).items()],
            mounts=[api.Mount(host_path=str(host), container_path=str(inner), readonly=readonly)
                    for host, inner, readonly in mounts],
            labels={**{k: v for k, v in config.labels.items() if k.startswith("io.kubernetes.")},
                    "io.kubernetes.container.name": name, **(labels or {})},
            log_path=f"{name}_{attempt}.log" if config.log_directory else "")
        security = container.linux.security_context
        security.capabilities.add_capabilities.extend(capabilities)
        security.namespace_options.CopyFrom(config.linux.security_context.namespace_options)
        made = self.call("CreateContainer", pod_sandbox_id=sandbox, config=container, sandbox_config=config)
        return made.container_id

    def start_container(self, container):
        self.call("StartContainer", container_id=container)

    def stop_container(self, container, grace=0):
        request = self.api.StopContainerRequest(container_id=container, timeout=grace)
        self.insist("StopContainer", request, timeout=grace + 60)  # the request has a `timeout` of its own

    def remove_container(self, container):
        self.insist("RemoveContainer", container_id=container)

    def list_containers(self, running_only=True):
        items = self.call("ListContainers").containers
        return [i for i in items if not running_only or i.state == self.api.CONTAINER_RUNNING]

    def container_status(self, container):
        """(status, what the runtime says besides: pid, runtimeSpec ...)."""
        answer = self.call("ContainerStatus", container_id=container, verbose=True)
        return answer.status, json.loads(answer.info.get("info", "{}"))

    def exec_sync(self, container, *command, timeout=20):
        """Runs a command in a container: (exit code, stdout, stderr)."""
        request = self.api.ExecSyncRequest(container_id=container, cmd=[str(c) for c in command], timeout=timeout)
        done = self.call("ExecSync", request, timeout=timeout + 10)
        return done.exit_code, done.stdout.decode(), done.stderr.decode()
