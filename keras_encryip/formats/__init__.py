"""What the owner and key holders both read and write. No Keras.

`key_bundle`      a user's key file
`key_pair`        a user's own X25519 key pair
`version_folder`  where an exported folder keeps its codebook and manifest
`manifest`        what an exported folder must hold, file by file
`sealed_folder`   a folder as one sealed file
`folder_index`    the list of files inside one, and which paths are safe
`responses`       model outputs, plain or encrypted, as they come over the wire or out of files
`atomic_files`    files and folders that are written whole or not at all
`progress`        a bar on a terminal
"""
