"""The server with openpi's own client, where the packages openpi-client and typing_extensions are installed."""

import numpy as np
import pytest
from support import served
from support.sockets import running

policies = pytest.importorskip(
    "openpi_client.websocket_client_policy", reason="openpi-client is not installed; it is not needed"
)


def test_openpi_s_client_asks_and_is_refused_and_asks_again():
    with running(served.FakePolicy(), token="secret") as server:
        client = policies.WebsocketClientPolicy("127.0.0.1", server.port, api_key="secret")
        assert client.get_server_metadata()["protocol"] == "cso_jax.policy_server"
        given = served.observation() | {"prompt": "do thing 1"}
        assert client.infer(given)["actions"].shape == (16, 7)
        with pytest.raises(RuntimeError, match="--images=chw"):
            client.infer(given | {"camera": np.zeros((3, 8, 10), np.uint8)})
        assert client.infer(given)["decision_index"] == 1
