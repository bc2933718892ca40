/* Plain C: a PGM image in, the class out. Integers only: the pixels are brought to the network's scale without a float.
 *
 *     cc -I build/digits examples/c/classify.c build/digits/model.a -o classify && ./classify digit.pgm
 *
 * The network takes 8x8 gray pixels divided by 255, as int8; what an integer stands for is in model.h. */
#include <stdio.h>

#include "model.h"

static MODEL_INPUT_0_TYPE input[MODEL_INPUT_0_SIZE];
static MODEL_OUTPUT_0_TYPE output[MODEL_OUTPUT_0_SIZE];
static _Alignas(MODEL_ARENA_ALIGNMENT) unsigned char arena[MODEL_ARENA_SIZE];

/* q = p / 255 / SCALE + ZERO_POINT, rounded and clipped: the compiler folds the factor into a constant of 16 fraction bits. */
static MODEL_INPUT_0_TYPE quantized(int pixel) {
    const long factor = (long)(65536.0 / (255.0 * MODEL_INPUT_0_SCALE) + 0.5);
    long q = ((pixel * factor + 32768) >> 16) + MODEL_INPUT_0_ZERO_POINT;
    return (MODEL_INPUT_0_TYPE)(q < -128 ? -128 : q > 127 ? 127 : q);
}

static int read_pgm(const char *path, unsigned char *pixels, size_t count) {
    unsigned width, height, greatest;
    FILE *file = fopen(path, "rb");
    int complete = file && fscanf(file, "P5 %u %u %u", &width, &height, &greatest) == 3 && fgetc(file) != EOF && width * height == count
                   && greatest == 255 && fread(pixels, 1, count, file) == count;
    if (file) fclose(file);
    return complete;
}

int main(int argc, char **argv) {
    const void *inputs[] = {input};
    void *outputs[] = {output};
    for (int image = 1; image < argc; image++) {
        unsigned char pixels[MODEL_INPUT_0_SIZE];
        int best = 0;
        if (!read_pgm(argv[image], pixels, sizeof pixels)) {
            fprintf(stderr, "%s: expected a binary PGM file of %d pixels\n", argv[image], MODEL_INPUT_0_SIZE);
            return 1;
        }
        for (int i = 0; i < MODEL_INPUT_0_SIZE; i++) input[i] = quantized(pixels[i]);
        model_run(inputs, outputs, arena);
        for (int i = 1; i < MODEL_OUTPUT_0_SIZE; i++) best = output[i] > output[best] ? i : best;
        printf("%d\n", best);
    }
    return 0;
}
