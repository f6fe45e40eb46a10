"""A server of Google Cloud Storage's protocol, and bucket paths for tests.

It is a process of its own: gcp-storage-emulator on 127.0.0.1, in memory. All
clients reach it through a proxy that can fail, see `flaky_proxy`.
"""

import contextlib
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

import pytest
from gcs import flaky_proxy

from vit_jax import storage

ROOT = pathlib.Path(__file__).parents[2]


def _free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


@pytest.fixture(scope='session')
def store():
  """The port of the server, which has a bucket `bucket`."""
  port = _free_port()
  command = '-m gcp_storage_emulator start -q -M --host 127.0.0.1 --port'
  process = subprocess.Popen(
    [sys.executable, *command.split(), str(port), '--default-bucket=bucket'],
    stderr=subprocess.DEVNULL,
  )
  try:
    deadline = time.monotonic() + 60
    while True:
      with contextlib.suppress(OSError):
        urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5).close()
        break
      assert process.poll() is None
      assert time.monotonic() < deadline
      time.sleep(0.05)
    yield port
  finally:
    process.kill()
    process.wait()


@pytest.fixture(scope='session')
def running_proxy(store):
  """The proxy, and in the environment all that leads clients to it."""
  with flaky_proxy.Proxy(store) as proxy, pytest.MonkeyPatch.context() as patch:
    url = f'http://127.0.0.1:{proxy.port}'
    patch.setenv('STORAGE_EMULATOR_HOST', url)  # gcsfs
    patch.setenv('TENSORSTORE_GCS_HTTP_URL', url)
    patch.setenv('CLOUD_STORAGE_EMULATOR_ENDPOINT', url)  # array_record
    # So that TensorStore looks for no credentials on the network.
    patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'none')
    yield proxy


@pytest.fixture
def proxy(running_proxy):
  """The proxy, without faults at first."""
  running_proxy.faults.clear()
  running_proxy.requests.clear()
  yield running_proxy
  running_proxy.faults.clear()


@pytest.fixture
def folder(proxy):
  """An `epath.Path` in the bucket that is empty."""
  return storage.path(f'gs://bucket/{uuid.uuid4().hex[:12]}')
