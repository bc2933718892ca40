/* Two programs in one application, compiled with --name resnet and --name dwconv: both classify the same quantized image.
 *
 *     cc -I build/resnet -I build/dwconv -I . examples/c/two.c build/resnet/model.a build/dwconv/model.a -o two
 */
#include <stdio.h>

#include "digit.h"
#include "dwconv.h"
#include "resnet.h"

#define MOST(a, b) ((a) > (b) ? (a) : (b))
static _Alignas(64) unsigned char arena[MOST(RESNET_ARENA_SIZE, DWCONV_ARENA_SIZE)]; /* one after the other: they may share it */

static int best(const RESNET_OUTPUT_0_TYPE *scores, int count) {
    int found = 0;
    for (int i = 1; i < count; i++) found = scores[i] > scores[found] ? i : found;
    return found;
}

int main(void) {
    RESNET_OUTPUT_0_TYPE a[RESNET_OUTPUT_0_SIZE];
    DWCONV_OUTPUT_0_TYPE b[DWCONV_OUTPUT_0_SIZE];
    const void *inputs[] = {digit};
    resnet_run(inputs, (void *[]){a}, arena);
    dwconv_run(inputs, (void *[]){b}, arena);
    printf("%d %d\n", best(a, RESNET_OUTPUT_0_SIZE), best(b, DWCONV_OUTPUT_0_SIZE));
    return 0;
}
