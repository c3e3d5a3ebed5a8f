"""What a confused label is: its codebook, its secret assignment, its ciphertext. No Keras."""
