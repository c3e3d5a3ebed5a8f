"""Cryptography of the protection: no Keras, no files.

`field`     polynomials over Z_q
`kem`       trace-and-revoke key encapsulation, one public key, many user keys
`sealing`   authenticated encryption and passphrase keys
`signing`   Ed25519 with domain separation
`encoding`  canonical JSON, base64, points and scalars as bytes
"""
