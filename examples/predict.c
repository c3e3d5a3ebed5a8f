/* Ask an exported model in C, through TensorFlow's C API: float32 in, the outputs' bytes out.

   predict FOLDER INPUT OUTPUT DIM... < inputs > outputs

   INPUT and OUTPUT are tensor names of a signature, DIM... the shape of one input. The number
   of inputs follows from the length of what is read. Strings are written one after the other.
   docs/guides/runtimes.md has the compiler's command and how to find the names. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

enum { MAX_DIMS = 8 };

static void fail(const char *what, const char *why) {
  fprintf(stderr, "predict: %s: %s\n", what, why);
  exit(1);
}

static void check(const TF_Status *status, const char *what) {
  if (TF_GetCode(status) != TF_OK) fail(what, TF_Message(status));
}

/* "StatefulPartitionedCall:0" is output 0 of the operation before the colon. */
static TF_Output find(TF_Graph *graph, const char *name) {
  char operation[256] = "";
  int index = 0;
  sscanf(name, "%255[^:]:%d", operation, &index);
  TF_Output found = {TF_GraphOperationByName(graph, operation), index};
  if (!found.oper) fail(name, "no such tensor in the model");
  if (index < 0 || index >= TF_OperationNumOutputs(found.oper)) fail(name, "no such output");
  return found;
}

static char *read_all(size_t *size) {
  char *data = NULL;
  for (size_t room = 1 << 16;; room *= 2) {
    if (!(data = realloc(data, room))) fail("inputs", "out of memory");
    *size += fread(data + *size, 1, room - *size, stdin);
    if (*size < room) return data;
  }
}

int main(int argc, char **argv) {
  if (argc < 5 || argc > 4 + MAX_DIMS) fail("usage", "FOLDER INPUT OUTPUT DIM... < in > out");
  int64_t shape[1 + MAX_DIMS];
  size_t size = 0, row = sizeof(float);
  for (int i = 4; i < argc; i++) {
    if ((shape[i - 3] = atoi(argv[i])) < 1) fail(argv[i], "not a dimension");
    row *= shape[i - 3];
  }
  char *data = read_all(&size);
  if (size % row) fail("inputs", "not a whole number of inputs of that shape");
  shape[0] = size / row;

  const char *tags[] = {"serve"};
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Session *session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check(status, argv[1]);
  TF_Output input = find(graph, argv[2]), output = find(graph, argv[3]);
  TF_Tensor *x = TF_AllocateTensor(TF_FLOAT, shape, argc - 3, size), *y = NULL;
  memcpy(TF_TensorData(x), data, size);
  TF_SessionRun(session, NULL, &input, &x, 1, &output, &y, 1, NULL, 0, NULL, status);
  check(status, argv[3]);

  if (TF_TensorType(y) == TF_STRING) {
    const TF_TString *strings = TF_TensorData(y);
    for (int64_t i = 0; i < TF_TensorElementCount(y); i++)
      fwrite(TF_StringGetDataPointer(&strings[i]), 1, TF_StringGetSize(&strings[i]), stdout);
  } else {
    fwrite(TF_TensorData(y), 1, TF_TensorByteSize(y), stdout);
  }
  if (fflush(stdout) || ferror(stdout)) fail("outputs", "cannot be written");
  TF_DeleteTensor(x);
  TF_DeleteTensor(y);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  free(data);
}
