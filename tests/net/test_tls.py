import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from meshnode.net import tls
from tests.net.nodes import identity


def test_the_certificate_carries_the_key_and_is_the_same_every_time() -> None:
    one = identity(7)
    made = tls.certificate(one)
    assert tls.node_id(made) == one.node_id
    assert made.public_bytes(Encoding.DER) == tls.certificate(one).public_bytes(Encoding.DER)
    one.private_key.public_key().verify(made.signature, made.tbs_certificate_bytes)
    assert made.not_valid_before_utc < datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) < made.not_valid_after_utc


def test_other_certificates_prove_no_node() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=1))
    assert tls.node_id(builder.sign(key, hashes.SHA256())) is None
    assert tls.node_id(None) is None


def test_exported_keys() -> None:
    secret = bytes(range(32))
    first = tls.exported(hashes.SHA256(), secret, "EXPORTER-a", 32)
    assert len(first) == 32
    assert first == tls.exported(hashes.SHA256(), secret, "EXPORTER-a", 32)
    assert first != tls.exported(hashes.SHA256(), secret, "EXPORTER-b", 32)
    assert len(tls.exported(hashes.SHA384(), bytes(48), "x", 100)) == 100
