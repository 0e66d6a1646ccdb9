// Line numbers of this file stand in test_kernel_budget.py.
inline void stage(int count)
{
    copy(count);
}
