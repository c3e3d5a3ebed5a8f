"""Cryptography of the protection: no Keras, no files.

`secret`          base of every object that holds a secret
`encoding`        canonical JSON, base64, points and scalars as bytes
`polynomial`      polynomials over Z_q, and rational functions from their values
`kem`             trace-and-revoke key encapsulation: one public key, many user keys
`combined_key`    keys that several users combined, and who they are
`aead`            authenticated encryption and passphrase keys
`streaming_aead`  authenticated encryption of streams in constant memory
`signing`         Ed25519 with domain separation
"""
