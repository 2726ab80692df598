"""What the scripts that measure a running service share: the server, the program, and gRPC stubs made from proto/ by grpcio-tools."""

import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys

SILO = os.environ.get("SILO", "target/release/silo")


def run(*arguments, address, check=True):
    """The program's answer, parsed if it was asked for JSON; without `check` also its exit status and its errors."""
    environment = dict(os.environ, SILO_SERVER=address)
    done = subprocess.run([SILO, *arguments], env=environment, capture_output=True, text=True)
    if not check:
        return done
    if done.returncode:
        sys.exit(f"silo {' '.join(arguments)}: {done.stderr}")
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


class Server:
    """`silo serve` with the configuration of the demo, over a store of its own."""

    def __init__(self, work, name, address, changes=(), fresh=True, prefix=()):
        root = pathlib.Path(work) / name
        if fresh:
            shutil.rmtree(root, ignore_errors=True)
        config = pathlib.Path("configs/demo.toml").read_text()
        config = config.replace("work/demo/store", str(root)).replace("127.0.0.1:50062", address)
        key = pathlib.Path(work) / f"{name}.key"
        config = config.replace("work/demo/silo.key", str(key))
        if not key.exists():
            create = [SILO, "key", "create", "example.org/measured", "--key", str(key)]
            subprocess.run(create, check=True, capture_output=True)
        for before, after in changes:
            assert before in config, before
            config = config.replace(before, after)
        path = pathlib.Path(work) / f"{name}.toml"
        path.write_text(config)
        command = [*prefix, SILO, "serve", "--config", str(path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said = ""
        while "ready at" not in (line := self.process.stdout.readline()):
            self.said += line
            if self.process.poll() is not None:
                raise RuntimeError(self.said + self.process.stdout.read())

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


def stubs(work):
    """Messages and stubs of the services, generated below `work`."""
    import importlib

    import google
    import grpc_tools.protoc

    proto = pathlib.Path(__file__).resolve().parent.parent / "proto"
    out = pathlib.Path(work) / "stubs"
    out.mkdir(parents=True, exist_ok=True)
    files = [str(f.relative_to(proto)) for f in sorted(proto.rglob("*.proto"))]
    status = grpc_tools.protoc.main(["protoc", f"-I{proto}", f"-I{pathlib.Path(grpc_tools.__file__).parent / '_proto'}",
                                     f"--python_out={out}", f"--grpc_python_out={out}", *files])
    if status:
        sys.exit("protoc failed")
    sys.path.insert(0, str(out))
    google.__path__.append(str(out / "google"))  # beside protobuf's own google package
    names = ["silo.v1.common_pb2", "silo.v1.datastore_pb2", "silo.v1.datastore_pb2_grpc", "silo.v1.generation_pb2",
             "silo.v1.generation_pb2_grpc", "google.longrunning.operations_pb2", "google.longrunning.operations_pb2_grpc"]
    return [importlib.import_module(name) for name in names]


def made(script):
    """Where and of what a result was made."""
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True).stdout
    command = " ".join([f"scripts/{script}", *sys.argv[1:]])
    return {"command": command, "commit": commit + (", with changes" if changed.strip() else ""), "machine": f"{os.cpu_count()} cores, {cpu}"}
