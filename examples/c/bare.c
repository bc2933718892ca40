/* C without a library: the exit code is the class of the image that is built in. As firmware would, it uses nothing of libc.
 *
 *     cc -ffreestanding -nostdlib -static -I build/digits -I . examples/c/bare.c build/digits/model.a -o bare   (digit.h: const signed char digit[], in the integers of the program)
 */
#include "digit.h"
#include "model.h"

static MODEL_OUTPUT_0_TYPE output[MODEL_OUTPUT_0_SIZE];
static _Alignas(MODEL_ARENA_ALIGNMENT) unsigned char arena[MODEL_ARENA_SIZE];

static int classify(void) {
    const void *inputs[] = {digit};
    void *outputs[] = {output};
    int best = 0;
    model_run(inputs, outputs, arena);
    for (int i = 1; i < MODEL_OUTPUT_0_SIZE; i++) best = output[i] > output[best] ? i : best;
    return best;
}

#if defined(__x86_64__) && defined(__linux__)
/* The kernel enters here with the stack aligned to 16; there is nothing to return to. */
__attribute__((force_align_arg_pointer)) void _start(void) {
    long found = classify();
    register long number __asm__("rax") = 60, status __asm__("rdi") = found;
    __asm__ volatile("syscall" : : "r"(number), "r"(status) : "memory");
    __builtin_unreachable();
}
#else
int main(void) { return classify(); }
#endif
