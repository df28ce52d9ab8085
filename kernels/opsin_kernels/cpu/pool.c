#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#define MOST 64
#define PATIENCE 4000 /* looks before a waiting thread sleeps: some ten microseconds, as long as the next call may take */

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    pid_t owner; /* a fork has none of its parent's threads */
    int64_t workers;
    atomic_uint round;
    atomic_int left;
    part_t *part;
    void *what;
    int64_t count, unit, threads;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void rest(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void do_share(int64_t index) {
    int64_t units = (pool.count + pool.unit - 1) / pool.unit, each = (units + pool.threads - 1) / pool.threads * pool.unit;
    int64_t first = index * each, last = first + each < pool.count ? first + each : pool.count;
    if (first < last) pool.part(pool.what, first, last);
}

static void *worker(void *given) {
    int64_t index = (int64_t)(intptr_t)given;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < PATIENCE && atomic_load(&pool.round) == seen; i++) rest();
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.lock);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.round);
        do_share(index);
        atomic_fetch_sub(&pool.left, 1); /* all do, also those without a share: none is still in a round that is over */
    }
    return 0;
}

/* As many workers as are wanted first; how many there are. */
static int64_t hired(int64_t wanted) {
    if (pool.owner != getpid()) {
        pool.owner = getpid(), pool.workers = 0;
        pthread_mutex_init(&pool.lock, 0);
        pthread_cond_init(&pool.wake, 0);
        atomic_store(&pool.round, 0);
    }
    pthread_t thread;
    while (atomic_load(&pool.round) == 0 && pool.workers < wanted) {
        if (pthread_create(&thread, 0, worker, (void *)(intptr_t)(pool.workers + 1))) break;
        pthread_detach(thread);
        pool.workers++;
    }
    return pool.workers;
}

void shared(part_t *part, void *what, int64_t count, int64_t unit, int64_t threads) {
    threads = threads < MOST ? threads : MOST;
    if (threads <= 1 || count <= unit || pthread_mutex_trylock(&pool.busy)) {
        part(what, 0, count);
        return;
    }
    int64_t workers = hired(threads - 1);
    pool.part = part, pool.what = what, pool.count = count, pool.unit = unit;
    pool.threads = threads < workers + 1 ? threads : workers + 1;
    atomic_store(&pool.left, (int)workers);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.round, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    do_share(0);
    for (int i = 0; atomic_load(&pool.left); i++) i < PATIENCE ? rest() : (void)sched_yield();
    pthread_mutex_unlock(&pool.busy);
}
