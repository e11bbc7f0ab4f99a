/* What the compiled parts of shiftscope share: clones for the processors, and threads. */

#ifndef SHIFTSCOPE_COMPILED_H
#define SHIFTSCOPE_COMPILED_H

#include <stddef.h>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define HAVE_THREADS 1
#endif

/* One binary serves all processors: the loader takes the widest clone that the machine runs. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__)
#pragma GCC optimize("O3", "no-math-errno", "no-trapping-math")
#define WIDEST __attribute__((target_clones("avx512f", "arch=haswell", "default")))
#else
#define WIDEST
#endif

#define INLINE static inline __attribute__((always_inline))

#define MAX_THREADS 64

/* Do the work of every share, of `size` bytes each: the first here, each other in a thread of its
   own, or here where none could be started. */
INLINE void run_all(void *(*work)(void *), void *shares, size_t size, int number)
{
#ifdef HAVE_THREADS
    pthread_t threads[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    for (int i = 1; i < number; i++)
        started[i] = !pthread_create(&threads[i], NULL, work, (char *)shares + (size_t)i * size);
    work(shares);
    for (int i = 1; i < number; i++)
        if (started[i])
            pthread_join(threads[i], NULL);
        else
            work((char *)shares + (size_t)i * size);
#else
    for (int i = 0; i < number; i++)
        work((char *)shares + (size_t)i * size);
#endif
}

#endif
