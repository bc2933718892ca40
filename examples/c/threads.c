/* Threads, both ways: CALLERS threads classify images at the same time, each with an arena of its own, and each of their calls is divided among
 * a pool of WORKERS, a parallel_for made of pthreads. The answers do not depend on either number.
 *
 *     cc -pthread -I build/digits examples/c/threads.c build/digits/model.a -o threads && ./threads images.i8 > classes
 *
 * images.i8 holds quantized images one after another. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

enum { CALLERS = 3, WORKERS = 2, MOST = 4096 };

/* --- a pool: one job at a time, whose indices the workers and the caller take in turn --- */

typedef struct {
    pthread_mutex_t lock, claimed;
    pthread_cond_t work, done;
    model_task task;
    void *context;
    int next, count, running, stop;
} Pool;

static void take_part(Pool *p) { /* with the lock held */
    while (p->next < p->count) {
        model_task task = p->task;
        void *context = p->context;
        int index = p->next++;
        p->running++;
        pthread_mutex_unlock(&p->lock);
        task(context, index);
        pthread_mutex_lock(&p->lock);
        if (--p->running == 0 && p->next == p->count) pthread_cond_signal(&p->done);
    }
}

static void *worker(void *pool) {
    Pool *p = pool;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        take_part(p);
        if (!p->stop && p->next == p->count) pthread_cond_wait(&p->work, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return 0;
}

static void parallel_for(model_task task, void *context, int count, void *pool) {
    Pool *p = pool;
    pthread_mutex_lock(&p->claimed); /* callers take turns */
    pthread_mutex_lock(&p->lock);
    p->task = task, p->context = context, p->next = 0, p->count = count;
    pthread_cond_broadcast(&p->work);
    take_part(p);
    while (p->running > 0) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
    pthread_mutex_unlock(&p->claimed);
}

/* --- callers --- */

static MODEL_INPUT_0_TYPE images[MOST][MODEL_INPUT_0_SIZE];
static int classes[MOST], total;
static Pool pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .claimed = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static void *caller(void *number) {
    MODEL_OUTPUT_0_TYPE scores[MODEL_OUTPUT_0_SIZE];
    void *arena = aligned_alloc(MODEL_ARENA_ALIGNMENT, (MODEL_ARENA_SIZE + 63) / 64 * 64);
    if (!arena) abort();
    for (int i = (int)(long)number; i < total; i += CALLERS) {
        const void *inputs[] = {images[i]};
        void *outputs[] = {scores};
        int best = 0;
        model_run_parallel(inputs, outputs, arena, parallel_for, &pool);
        for (int c = 1; c < MODEL_OUTPUT_0_SIZE; c++) best = scores[c] > scores[best] ? c : best;
        classes[i] = best;
    }
    free(arena);
    return 0;
}

int main(int argc, char **argv) {
    pthread_t workers[WORKERS], callers[CALLERS];
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : 0;
    if (!file) return fprintf(stderr, "expected a file of images\n"), 1;
    total = (int)fread(images, MODEL_INPUT_0_SIZE, MOST, file);
    fclose(file);
    for (int i = 0; i < WORKERS; i++) pthread_create(&workers[i], 0, worker, &pool);
    for (int i = 0; i < CALLERS; i++) pthread_create(&callers[i], 0, caller, (void *)(long)i);
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], 0);
    pthread_mutex_lock(&pool.lock);
    pool.stop = 1;
    pthread_cond_broadcast(&pool.work);
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < WORKERS; i++) pthread_join(workers[i], 0);
    for (int i = 0; i < total; i++) printf("%d\n", classes[i]);
    return 0;
}
