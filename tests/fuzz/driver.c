/* libFuzzer's entry points (https://llvm.org/docs/LibFuzzer.html) over a Python function.
 *
 * What is fuzzed are the compiled modules of the `fuzz` flavour: they carry clang's coverage
 * counters and are checked by AddressSanitizer and UndefinedBehaviorSanitizer. Python is embedded,
 * and only calls them; VEDETTE_FUZZ names the function, as module:function.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static PyObject *function;

static void stop(const char *what)
{
	fprintf(stderr, "driver: %s\n", what);
	PyErr_Print();
	abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *named = getenv("VEDETTE_FUZZ");
	char module[128];
	const char *colon;
	PyObject *imported;

	(void)argc;
	(void)argv;
	if (named == NULL || (colon = strchr(named, ':')) == NULL ||
	    (size_t)(colon - named) >= sizeof(module))
		stop("VEDETTE_FUZZ is no module:function");
	memcpy(module, named, colon - named);
	module[colon - named] = 0;
	Py_InitializeEx(0);
	imported = PyImport_ImportModule(module);
	if (imported == NULL || (function = PyObject_GetAttrString(imported, colon + 1)) == NULL)
		stop("cannot import what VEDETTE_FUZZ names");
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	PyObject *result = PyObject_CallFunction(function, "y#", (const char *)data, (Py_ssize_t)size);

	if (result == NULL)
		stop("the function raised");
	Py_DECREF(result);
	return 0;
}
