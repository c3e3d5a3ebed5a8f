"""`python -m keras_encryip` is `encryip`."""

from keras_encryip.cli import main

if __name__ == "__main__":
    main()
