"""A Slurm of a few nodes on this machine, for tests: own key, own ports, everything in one folder, gone afterwards."""

import getpass
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""Daemons lie where only root looks for programs."""
STARTED, STOPPED = 30, 15
"""Seconds that starting and each part of stopping may take."""

# cred_expire: a job that is queued again waits for so many seconds, two minutes by default.
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=20
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmdParameters=config_overrides
KillWait=10
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
GresTypes=gpu
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=1000 Gres=gpu:{gpus}\n"
PARTITION = "PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP\n"
MUNGED = ("--foreground", "--force", "--num-threads=1")


def missing() -> list[str]:
    """The programs of Slurm and MUNGE that are not installed here."""
    return [name for name in (*DAEMONS, *COMMANDS) if shutil.which(name, path=PATH) is None]


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class PrivateSlurm:
    """`with PrivateSlurm(nodes=2) as slurm:` runs until the block ends, however it ends.

    The nodes are called node1, node2, ...; they share this machine's cores, and their GPUs are files without content.

    Attributes:
      environment: variables for the commands (`sbatch` and the like); without those of a Slurm that runs the tests.
    """

    def __init__(self, nodes: int, gpus: int = 4):
        """Names the nodes; nothing runs yet."""
        self._names, self._gpus = [f"node{n}" for n in range(1, nodes + 1)], gpus
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "PrivateSlurm":
        # Not pytest's folder: the path of a socket has 107 characters at most.
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="slurm_"))
        outer = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.environment = {**outer, "PATH": PATH, "SLURM_CONF": str(self._folder / "slurm.conf")}
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        try:
            self._end_jobs()
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                try:
                    daemon.wait(STOPPED)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, *command: str, **environment: str) -> str:
        """What a command of Slurm prints; an AssertionError with its words where it fails."""
        done = subprocess.run(command, env={**self.environment, **environment}, capture_output=True, text=True,
                              timeout=60)  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{self.log()}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ... of a job that was submitted here."""
        return self.describe(job)["JobState"]

    def describe(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self) -> str:
        """The last lines of what the daemons wrote, for messages."""
        return "".join(f"\n{path.name}: {path.read_text()[-500:]}" for path in self._folder.glob("*.log"))

    def _start(self) -> None:
        self._write_config()
        folder, config = self._folder, str(self._folder / "slurm.conf")
        self._daemon("munged", *MUNGED, f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock",
                     f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged-own.log",
                     f"--seed-file={folder}/munge.seed")  # fmt: skip
        self._wait((folder / "munge.sock").exists)
        self._daemon("slurmctld", "-D", "-c", "-f", config)
        for name in self._names:
            self._daemon("slurmd", "-D", "-c", "-f", config, "-N", name, log=f"slurmd-{name}")
        self._wait(self._idle)

    def _write_config(self) -> None:
        folder, host = self._folder, socket.gethostname().partition(".")[0]
        first, *ports = free_ports(1 + len(self._names))
        (folder / "state").mkdir()
        for name in self._names:
            (folder / f"spool-{name}").mkdir()
        (folder / "munge.key").touch(mode=0o600)
        (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
        text = CONFIG.format(host=host, port=first, user=getpass.getuser(), folder=folder)
        for name, port in zip(self._names, ports, strict=True):
            text += NODE.format(name=name, host=host, port=port, gpus=self._gpus)
        (folder / "slurm.conf").write_text(text + PARTITION.format(names=",".join(self._names)))
        files = [folder / f"gpu{n}" for n in range(self._gpus)]
        for file in files:
            file.touch()
        lines = (f"NodeName={name} Name=gpu File={file}\n" for name in self._names for file in files)
        (folder / "gres.conf").write_text("".join(lines))

    def _daemon(self, name: str, *arguments: str, log: str | None = None) -> None:
        with open(self._folder / f"{log or name}.log", "wb") as stream:
            self._daemons.append(subprocess.Popen([shutil.which(name, path=PATH), *arguments], stdout=stream,
                                                  stderr=stream, stdin=subprocess.DEVNULL, env=self.environment,
                                                  start_new_session=True))  # fmt: skip

    def _idle(self) -> bool:
        command = ["sinfo", "-h", "-N", "-o", "%N %T"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=STARTED)
        return sorted(done.stdout.split("\n")[:-1]) == [f"{name} idle" for name in self._names]

    def _wait(self, ready) -> None:
        until = time.monotonic() + STARTED
        while not ready():
            dead = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > until:
                raise RuntimeError(f"the private Slurm did not start (ended: {dead}):{self.log()}")
            time.sleep(0.1)

    def _end_jobs(self) -> None:
        """Kills what still runs: jobs outlive the daemons that started them."""
        if self._daemons and all(daemon.poll() is None for daemon in self._daemons):
            for how in ([], ["--signal=KILL", "--full"]):
                subprocess.run(["scancel", *how, f"--user={getpass.getuser()}"], env=self.environment, timeout=STOPPED,
                               capture_output=True)  # fmt: skip
            until = time.monotonic() + STOPPED
            while time.monotonic() < until and self.run("squeue", "-h"):
                time.sleep(0.2)
