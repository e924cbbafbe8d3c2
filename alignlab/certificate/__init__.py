"""The gradient certificate: none of the usual tricks changes what an objective trains."""

from alignlab.certificate.certify import certify
from alignlab.certificate.findings import Certificate, Finding

__all__ = ["Certificate", "Finding", "certify"]
