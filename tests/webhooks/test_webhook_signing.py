"""Signatures, checked by the example of the specification's own libraries and by another implementation of it."""

import base64
from datetime import UTC, datetime

import openai
import pytest
from pydantic import SecretStr

from automagik.webhooks.signing import new_signing_secret, signed_headers

SECRET = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


def test_a_signature_is_that_of_the_example_of_the_specifications_libraries() -> None:
    headers = signed_headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", datetime.fromtimestamp(1614265330, UTC), b'{"test": 2432232314}', [SECRET]
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_another_implementation_accepts_each_of_two_secrets_and_no_third() -> None:
    old, new, other = new_signing_secret(), new_signing_secret(), new_signing_secret()
    body = '{"type":"run.completed","data":{}}'
    headers = signed_headers("dlv_1", datetime.now(UTC), body.encode(), [new, old])
    client = openai.OpenAI(api_key="none")
    try:
        for secret in (old, new):
            client.webhooks.verify_signature(body, headers, secret=secret.get_secret_value())
        for changed_body, secret in ((body, other), (body + " ", new)):
            with pytest.raises(openai.InvalidWebhookSignatureError):
                client.webhooks.verify_signature(changed_body, headers, secret=secret.get_secret_value())
    finally:
        client.close()


def test_a_secret_has_256_random_bits_and_the_prefix_that_names_it() -> None:
    secret = new_signing_secret().get_secret_value()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert secret != new_signing_secret().get_secret_value()
