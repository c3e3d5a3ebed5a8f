"""A web service that holds a key bundle, asks a model server, and answers with true labels.

python examples/protect_trained.py FOLDER
tensorflow_model_server --rest_api_port=8501 --model_name=digits \
    --model_base_path=$PWD/FOLDER/served/digits
MODEL_SERVER=http://localhost:8501 MODEL_FOLDER=FOLDER/served/digits/2 \
    KEY_BUNDLE=FOLDER/alice.keybundle PASSPHRASE="alice's secret" \
    uvicorn --app-dir examples fastapi_service:app
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from keras_encryip.client import Decoder
from keras_encryip.client.serving import ServingClient
from keras_encryip.errors import ArgumentError, EncryipError

Pixels = Annotated[list[float], Field(min_length=8, max_length=8)]
Image = Annotated[list[Pixels], Field(min_length=8, max_length=8)]


class Question(BaseModel):
    images: Annotated[list[Image], Field(min_length=1, max_length=256)]  # grey values in 0 … 1


class Answer(BaseModel):
    name: str
    probability: float


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """A wrong key or passphrase ends the service here, before it takes questions."""
    decoder = Decoder.open(
        os.environ["MODEL_FOLDER"], os.environ["KEY_BUNDLE"], os.environ["PASSPHRASE"]
    )
    with ServingClient(os.environ["MODEL_SERVER"], "digits", decoder, timeout=5) as client:
        app.state.client, app.state.names = client, decoder.class_names
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
def classify(question: Question) -> list[Answer]:  # not async: FastAPI runs it in a thread
    try:
        found = app.state.client.predict(np.array(question.images, np.float32)[..., None])
    except ArgumentError as error:
        raise HTTPException(422, str(error)) from None
    except EncryipError as error:
        logging.getLogger("uvicorn.error").error("%s", error)  # names the server: not for callers
        raise HTTPException(502, "The model server gave no answer.") from None
    return [Answer(name=app.state.names[row.argmax()], probability=row.max()) for row in found]
