/* Trains a SavedModel through TensorFlow's C API and prints the norms of its weights.
 *
 * usage: train DIR TAG STEPS FETCH [FEED ROWS COLUMNS]...
 *
 * FETCH and FEED are tensors of the signature, such as StatefulPartitionedCall:0 and train_x:0. Element i of every feed,
 * float32, is sin(i + 1). Printed are, as "NAME NORM", the Euclidean norms of all float32 variables that the graph reads
 * in nodes NAME/Read/ReadVariableOp, as TensorFlow 2 exports have them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

#define MOST_FEEDS 8
#define READ_SUFFIX "/Read/ReadVariableOp"

static void check(TF_Status *status, const char *doing) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "train: %s: %s\n", doing, TF_Message(status));
  exit(1);
}

/* The output that "node:index" names. */
static TF_Output output(TF_Graph *graph, const char *name) {
  const char *colon = strrchr(name, ':');
  size_t length = colon ? (size_t)(colon - name) : strlen(name);
  char node[512];
  if (length >= sizeof node) {
    fprintf(stderr, "train: %s: the name is too long\n", name);
    exit(2);
  }
  memcpy(node, name, length);
  node[length] = '\0';
  TF_Output found = {TF_GraphOperationByName(graph, node), colon ? atoi(colon + 1) : 0};
  if (!found.oper) {
    fprintf(stderr, "train: the graph has no node '%s'\n", node);
    exit(1);
  }
  return found;
}

static TF_Tensor *feed(int64_t rows, int64_t columns) {
  const int64_t shape[] = {rows, columns};
  size_t count = (size_t)(rows * columns);
  TF_Tensor *tensor = TF_AllocateTensor(TF_FLOAT, shape, 2, count * sizeof(float));
  float *values = TF_TensorData(tensor);
  for (size_t i = 0; i < count; i++) values[i] = (float)sin((double)(i + 1));
  return tensor;
}

static double norm(const TF_Tensor *tensor) {
  const float *values = TF_TensorData(tensor);
  double sum = 0;
  for (int64_t i = 0; i < TF_TensorElementCount(tensor); i++) sum += (double)values[i] * values[i];
  return sqrt(sum);
}

static void print_norms(TF_Session *session, TF_Graph *graph, TF_Status *status) {
  size_t position = 0;
  for (TF_Operation *op; (op = TF_GraphNextOperation(graph, &position));) {
    const char *name = TF_OperationName(op);
    size_t length = strlen(name), suffix = strlen(READ_SUFFIX);
    TF_Output read = {op, 0};
    if (length <= suffix || strcmp(name + length - suffix, READ_SUFFIX) || TF_OperationOutputType(read) != TF_FLOAT)
      continue;
    TF_Tensor *value = NULL;
    TF_SessionRun(session, NULL, NULL, NULL, 0, &read, &value, 1, NULL, 0, NULL, status);
    check(status, name);
    printf("%.*s %.9g\n", (int)(length - suffix), name, norm(value));
    TF_DeleteTensor(value);
  }
}

int main(int argc, char **argv) {
  int feeds = (argc - 5) / 3;
  if (argc < 5 || (argc - 5) % 3 || feeds > MOST_FEEDS) {
    fprintf(stderr, "usage: train DIR TAG STEPS FETCH [FEED ROWS COLUMNS]...\n");
    return 2;
  }
  const char *tags[] = {argv[2]};
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, NULL, status);
  check(status, argv[1]);

  TF_Output inputs[MOST_FEEDS];
  TF_Tensor *values[MOST_FEEDS];
  for (int i = 0; i < feeds; i++) {
    char **spec = argv + 5 + 3 * i;
    inputs[i] = output(graph, spec[0]);
    values[i] = feed(atoll(spec[1]), atoll(spec[2]));
  }
  TF_Output fetch = output(graph, argv[4]);
  for (int step = atoi(argv[3]); step > 0; step--) {
    TF_Tensor *result = NULL;
    TF_SessionRun(session, NULL, inputs, values, feeds, &fetch, &result, 1, NULL, 0, NULL, status);
    check(status, "a training step");
    TF_DeleteTensor(result);
  }
  print_norms(session, graph, status);

  for (int i = 0; i < feeds; i++) TF_DeleteTensor(values[i]);
  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
