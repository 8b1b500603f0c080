"""A Ray cluster of several nodes, all on this machine."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

__all__ = ["add_node", "bare_cluster", "logs", "raylet"]

STORE = 100 * 2**20  # bytes of a node's object store


@contextmanager
def bare_cluster(**head: Any) -> Generator[Cluster]:
    """A head without CPUs. Who needs nodes adds them."""
    folder = tempfile.mkdtemp(prefix="ray")  # short: Ray keeps sockets there
    head |= {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def add_node(cluster: Cluster, cpus: int = 1, gpus: int = 0) -> Any:
    return cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE)


def raylet(node: Any) -> int:
    """The process under which a node's workers run."""
    return node.all_processes["raylet"][0].process.pid


def logs(cluster: Cluster) -> Path:
    assert cluster.head_node is not None
    return Path(cluster.head_node.get_logs_dir_path())
